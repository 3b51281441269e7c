// Kapsule layers on this node: finding their manifest, opening them through
// kapsule-fuse, mounting their views, and deciding who may use them.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <absl/time/time.h>

#include "core/base/status.h"
#include "core/oci/annotations.h"
#include "snapshotter/config.h"
#include "snapshotter/data_plane_status.h"
#include "snapshotter/layer_events.h"
#include "snapshotter/snapshot_key.h"

namespace kapsule::v1 {
class FetchStats;  // kapsule/v1/fetch.proto
}

namespace kapsule::snapshotter {

// One committed snapshot that is a Kapsule layer. The record is a hint kept in
// the metadata store; what is mounted is proven by the manifest and the key.
struct ModelLayer {
  int64_t id = 0;        // snapshot id: mounted at <root>/l/<id>/fs
  oci::Digest chain_id;  // of the snapshot
  uint32_t depth = 0;    // 0 is the bottom layer of the image
  oci::LayerLabel label;
  std::string ns = {};  // whose pull made it; its images are asked first
};

struct PullCredentials;  // pull_memory.h
// Whom an image was pulled as, where that is known.
using FindCredentials = std::function<std::optional<PullCredentials>(const std::string& image)>;

// Thread-safe. No method holds a lock over I/O, RPC or mount(2).
class ModelLayers {
 public:
  // Starts kapsule-fuse and opens `layers` again in the background; or goes on with
  // the data plane of an earlier run and the mounts of `layers` that it left below
  // <root>/l. All other mounts there are detached. `stored_fds` as in
  // DataPlane::Options. `credentials` are for kapsule-fetch. `is_recorded` tells, when
  // Add() and Await() ask, whether the metadata has a snapshot of this id.
  static absl::StatusOr<std::unique_ptr<ModelLayers>> Start(
      const Config& config, const std::vector<ModelLayer>& layers, std::vector<int> stored_fds,
      FindCredentials credentials, std::function<bool(int64_t id)> is_recorded,
      LayerEvents events = {});
  // Unmounts every view and ends kapsule-fuse, except after Leave().
  ~ModelLayers();

  // From now on the end of this object leaves kapsule-fuse and all mounts as they
  // are: containers read on, and the next Start() finds them.
  void Leave();
  // Whether a view is mounted.
  bool AnyMounted() const;

  DataPlaneStatus status() const;
  bool failover() const;  // as in status(), at once
  // As LayerTable::States(), BlobFetcher::Stats() and pid().
  std::map<std::string, size_t> LayerStates() const;
  absl::StatusOr<v1::FetchStats> FetchStats(absl::Time deadline) const;
  pid_t fetch_pid() const;
  // As DataPlane::Upgrade().
  absl::Status Upgrade();

  // For a Prepare without labels: looks in containerd for an image of
  // namespace `ns` whose chain holds `chain_id`, and, where its layers are
  // Kapsule layers, prepares those in containerd (nested Prepare calls with
  // labels arrive back here). OK whatever was found; other errors than this only
  // where containerd could not be asked within config.lookup_timeout_ms.
  //   Aborted  the layers of an encrypted image came too late for this Prepare:
  //            unpacking would fail, pulling again will do
  absl::Status PreRegister(const std::string& ns, const oci::Digest& chain_id);

  // A new layer: opens it in the background, where its snapshot is recorded still.
  void Add(const ModelLayer& layer);

  // Waits until all of `chain` (the Kapsule layers below a container, bottom to
  // top) are mounted and an image of the namespace of `key`, which is that of
  // the container's snapshot, is authorised for them: its own where containerd
  // has a record of it, and for an image volume the one that the key names.
  //   Unavailable       not within `deadline`: says what is missing and why
  //   PermissionDenied  no key for this node, or an image that names other keys
  //   others            a layer that cannot be opened: tried again at the next
  //                     Await, at most once a second
  absl::Status Await(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                     absl::Time deadline);

  // The snapshot is gone from the metadata: unmounts its view and closes it;
  // a view that is still read lives until its last reader goes.
  void Remove(const ModelLayer& layer);

 private:
  class Impl;
  explicit ModelLayers(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace kapsule::snapshotter
