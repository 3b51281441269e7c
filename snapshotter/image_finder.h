// Which images of containerd hold a chain of layers.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/containerd/client.h"
#include "core/oci/manifest.h"

namespace kapsule::snapshotter {

// A manifest with the chain that its config gives. Immutable.
struct ManifestChain {
  oci::Digest digest;
  oci::Digest config;
  std::vector<oci::Descriptor> layers;
  std::vector<oci::Digest> diff_ids, chain_ids;  // as many as layers

  // Whether the bytes of layer `i` can be those that the config means. Of an
  // encrypted layer only its key tells; a plain one is the tar that its diff_id
  // names, or anybody could have her own bytes stand for somebody else's chain.
  bool CanBeGenuine(size_t i) const;
};

// A manifest whose layer at `position` completes the chain that was asked for.
struct FoundImage {
  std::string name;  // of the image record; empty where none names the manifest
  std::shared_ptr<const ManifestChain> manifest;
  size_t position = 0;

  std::string title() const;  // for messages: the name, else the manifest's digest
  const oci::Descriptor& layer() const { return manifest->layers[position]; }
};

// Thread-safe. Keeps what it has parsed, by digest, up to kCacheBytes of
// manifests and configs. Manifests that are not there, too long or not of an
// image are passed over. Errors are those of a containerd that does not answer.
class ImageFinder {
 public:
  static constexpr size_t kCacheBytes = 64 << 20;
  static constexpr size_t kMaxFound = 16;
  static constexpr size_t kMaxIndexEntries = 64;

  // `client` outlives this.
  explicit ImageFinder(containerd::Client* client, size_t cache_bytes = kCacheBytes)
      : client_(*client), cache_bytes_(cache_bytes) {}

  // At most kMaxFound manifests that images of `ns` name, each once; those of
  // linux/amd64 before others.
  absl::StatusOr<std::vector<FoundImage>> OfChain(const std::string& ns,
                                                  const oci::Digest& chain_id, absl::Time deadline);

  // The same of images whose record names `image`, a manifest or an index, and of
  // that manifest where it is an entry of another index. InvalidArgument: none was
  // found, and one of them was too long or not of an image.
  absl::StatusOr<std::vector<FoundImage>> OfDigest(const std::string& ns, const oci::Digest& image,
                                                   const oci::Digest& chain_id,
                                                   absl::Time deadline);

  // The same of one image. NotFound: no image has that name. InvalidArgument: as above.
  absl::StatusOr<std::vector<FoundImage>> OfImage(const std::string& ns, const std::string& name,
                                                  const oci::Digest& chain_id, absl::Time deadline);

  // Manifests of the content store that containerd's garbage collection labels
  // connect with `layer` as layer number `depth`. They are there before the
  // image record, while a pull is under way.
  absl::StatusOr<std::vector<FoundImage>> OfLayer(const std::string& ns, const oci::Digest& layer,
                                                  size_t depth, const oci::Digest& chain_id,
                                                  absl::Time deadline);

 private:
  // What a digest turned out to be: a manifest, an index, or something else.
  struct Parsed {
    std::shared_ptr<const ManifestChain> manifest;
    std::vector<std::pair<oci::Digest, bool>> entries;  // true: for linux/amd64
    absl::Status bad;                                   // why neither
  };
  // A digest, and whether it was read as an index: whoever lists somebody's index
  // as a manifest must not hide it.
  using CacheKey = std::pair<oci::Digest, bool>;
  struct Cached {
    CacheKey key;
    std::shared_ptr<const Parsed> parsed;
    size_t bytes;
  };

  // A scan over images; `native` are entries for linux/amd64 and bare manifests.
  struct Scan;
  absl::Status ScanAll(Scan* scan);
  absl::Status ScanImage(Scan* scan, const containerd::Image& image, bool native);
  absl::Status ScanManifest(Scan* scan, const std::string& name, const oci::Digest& digest);

  absl::StatusOr<std::shared_ptr<const Parsed>> Load(const std::string& ns,
                                                     const oci::Digest& digest, bool index,
                                                     absl::Time deadline);
  absl::StatusOr<Parsed> LoadManifest(const std::string& ns, const oci::Digest& digest,
                                      const std::string& text, size_t* bytes, absl::Time deadline);
  std::shared_ptr<const Parsed> FindCached(const CacheKey& key) ABSL_LOCKS_EXCLUDED(mu_);
  void Keep(Cached entry) ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction.
  containerd::Client& client_;
  const size_t cache_bytes_;

  absl::Mutex mu_;                                // the cache only; never held over a call
  std::list<Cached> cache_ ABSL_GUARDED_BY(mu_);  // the most recently used first
  std::map<CacheKey, std::list<Cached>::iterator> by_key_ ABSL_GUARDED_BY(mu_);
  size_t used_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kapsule::snapshotter
