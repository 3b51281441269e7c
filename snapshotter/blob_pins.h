// Ciphertext blobs of containerd's content store, kept while a layer needs them.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <filesystem>
#include <map>
#include <memory>
#include <set>

#include "core/base/file.h"
#include "core/oci/digest.h"

namespace kapsule::snapshotter {

// A pinned blob is a hard link <folder>/<hex>. Where the content store is on
// another file system it is an open descriptor (said once): the blob then lives
// as long as this process, whatever containerd's garbage collection does.
// Thread-safe for different blobs; calls for one blob are in sequence.
class BlobPins {
 public:
  // Makes `folder` (0700) and removes what is in it, except links of `keep`.
  static absl::StatusOr<std::unique_ptr<BlobPins>> Start(std::filesystem::path folder,
                                                         std::filesystem::path content_root,
                                                         const std::set<oci::Digest>& keep);

  // Links the blob and returns a descriptor of it: O_RDONLY, and O_DIRECT where
  // the file system takes it. A link that is there stays until a good one can
  // take its place, since it may be the only copy.
  //   Unavailable         it is not in the content store (yet)
  //   InvalidArgument     it has another size
  absl::StatusOr<UniqueFd> Open(const oci::Digest& digest, uint64_t size) ABSL_LOCKS_EXCLUDED(mu_);

  // Keeps `fd`, which Open() gave, where there is no link.
  void Hold(const oci::Digest& digest, UniqueFd fd) ABSL_LOCKS_EXCLUDED(mu_);

  void Release(const oci::Digest& digest) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  BlobPins(std::filesystem::path folder, std::filesystem::path content_root)
      : folder_(std::move(folder)), content_root_(std::move(content_root)) {}
  absl::StatusOr<UniqueFd> Pin(const oci::Digest& digest, uint64_t size);
  absl::Status Link(const std::filesystem::path& blob, const std::filesystem::path& link);

  // Constant after construction.
  const std::filesystem::path folder_;
  const std::filesystem::path content_root_;

  absl::Mutex mu_;  // map access only
  std::map<oci::Digest, UniqueFd> fds_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::snapshotter
