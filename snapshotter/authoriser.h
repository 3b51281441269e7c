// Who may use a layer that is open.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <functional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "snapshotter/image_finder.h"
#include "snapshotter/layer_table.h"

namespace kapsule::snapshotter {

// Authorised for a layer is an image whose manifest names the same blob at that
// position of the same chain, has it encrypted or plain as it was opened, and
// whose annotations lead to what it was opened with: the same key and index.
// Chain ids and snapshots are shared by all namespaces and images, and whoever
// pulls an image chooses its chain ids, so this is asked for every container and
// for plain layers too. Thread-safe.
class Authoriser {
 public:
  // DataPlane::Authorise().
  using Compare =
      std::function<absl::Status(const oci::Digest&, const oci::Annotations&, absl::Time deadline)>;

  Authoriser(containerd::Client* client, ImageFinder* finder, Compare compare)
      : client_(*client), finder_(*finder), compare_(std::move(compare)) {}

  // `chain` as for LayerTable::Await(), which gave `ready`. Where containerd has
  // a container of that key, its image is asked; of an image volume, the image
  // that the key names; else any image of the namespace.
  //   PermissionDenied  no such image, or it names other bytes or keys
  //   Unavailable       containerd, kapsule-fuse or the keyprovider is away
  absl::Status Authorise(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                         const LayerTable::Ready& ready, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // A manifest, a layer's digest, and the opening (Opened::number) that it was proven for.
  using Proof = std::tuple<oci::Digest, oci::Digest, uint64_t>;
  static constexpr size_t kMaxProofs = 4096;

  absl::StatusOr<std::vector<FoundImage>> Candidates(const SnapshotKey& key, const ModelLayer& top,
                                                     absl::Time deadline);
  absl::StatusOr<std::vector<FoundImage>> OfVolume(const SnapshotKey& key, const ModelLayer& top,
                                                   absl::Time deadline);
  absl::Status CheckImage(const FoundImage& image, const std::vector<ModelLayer>& chain,
                          const LayerTable::Ready& ready, absl::Time deadline);
  absl::Status CheckLayer(const FoundImage& image, const ModelLayer& layer, const Opened& opened,
                          absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction.
  containerd::Client& client_;
  ImageFinder& finder_;
  const Compare compare_;

  absl::Mutex mu_;  // set access only
  std::set<Proof> proven_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::snapshotter
