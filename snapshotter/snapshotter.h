// containerd's snapshotter: ordinary layers as its overlayfs snapshotter keeps
// them, and Kapsule layers, which are recorded at Prepare and mounted by
// ModelLayers.
#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <absl/time/time.h>

#include "core/base/status.h"
#include "snapshotter/id_maps.h"
#include "snapshotter/layer_backend.h"
#include "snapshotter/metadata_store.h"
#include "snapshotter/snapshot.h"
#include "snapshotter/snapshot_dirs.h"
#include "snapshotter/snapshot_key.h"
#include "snapshotter/usage.h"

namespace kapsule::snapshotter {

// The label that names the chain which an unpacking client is about to make.
inline constexpr char kSnapshotRefLabel[] = "containerd.io/snapshot.ref";

// Thread-safe. Holds no lock while it waits for the backend. Errors, beside
// those of the metadata's file:
//   NotFound            no such snapshot, or parent
//   AlreadyExists       the key or name is in use
//   FailedPrecondition  the snapshot is of another kind, or has children
//   InvalidArgument     the request makes no sense
class Snapshotter {
 public:
  // Sweeps what a crash left below `root`, where nothing is mounted any more, and makes
  // the directories anew that a power failure took.
  // `open_timeout` is how long a container's Prepare, View and Mounts wait.
  static absl::StatusOr<std::unique_ptr<Snapshotter>> Open(const std::filesystem::path& root,
                                                           std::unique_ptr<MetadataStore> store,
                                                           LayerBackend& backend,
                                                           absl::Duration open_timeout);

  // A Prepare that names a Kapsule layer in its labels makes that layer's
  // committed snapshot and answers AlreadyExists, which tells containerd not to
  // fetch and unpack it. Above Kapsule layers, Prepare, View and Mounts also
  // give the errors of LayerBackend::Await(), and make nothing then.
  absl::StatusOr<std::vector<Mount>> Prepare(const std::string& key, const std::string& parent,
                                             const Labels& labels);
  absl::StatusOr<std::vector<Mount>> View(const std::string& key, const std::string& parent,
                                          const Labels& labels);
  absl::StatusOr<std::vector<Mount>> Mounts(const std::string& key);

  absl::Status Commit(const std::string& name, const std::string& key, const Labels& labels);

  // For clients that unpack layer by layer: the active snapshot that is written to
  // at `directory` becomes the Kapsule layer of `label` at its Commit, as if a
  // labelled Prepare had made it.
  //   NotFound         `directory` is not that of a snapshot
  //   InvalidArgument  its key does not say that the layer's diff_id is unpacked
  //                    there: the chain in it comes from the image's config
  absl::Status ClaimLayer(const std::string& directory, const oci::LayerLabel& label);
  // Whether one of these directories is that of an encrypted layer.
  absl::StatusOr<bool> AnyEncrypted(const std::vector<std::string>& directories);

  absl::Status Remove(const std::string& key);

  absl::StatusOr<Info> Stat(const std::string& key);
  absl::StatusOr<Info> Update(const Info& info, const std::vector<std::string>& paths);
  absl::StatusOr<std::vector<Info>> List(const std::vector<std::string>& filters);
  absl::StatusOr<Usage> GetUsage(const std::string& key);

  // As MetadataStore.
  absl::StatusOr<std::map<Kind, size_t>> CountByKind() { return store_->CountByKind(); }
  absl::Status TryWrite() { return store_->TryWrite(); }

  // Deletes the directories of removed snapshots, and waits for it.
  void Cleanup();

 private:
  Snapshotter(std::unique_ptr<MetadataStore> store, std::unique_ptr<SnapshotDirs> dirs,
              LayerBackend& backend, absl::Duration open_timeout);

  absl::Status PrepareLayer(const std::string& ns, const std::string& parent, const Labels& labels);
  absl::StatusOr<std::vector<Mount>> Create(Kind kind, const std::string& key,
                                            const std::string& parent, const Labels& labels);
  absl::Status AwaitLayers(Kind kind, const SnapshotKey& key, const Chain& chain);
  absl::StatusOr<std::vector<Mount>> MountsOf(Kind kind, const SnapshotKey& key, int64_t id,
                                              const Chain& chain,
                                              const std::optional<IdMaps>& maps) const;
  absl::Status Restore(int64_t id);
  absl::StatusOr<SnapshotDirs::Staged> StageAbove(Kind kind, const Chain& chain,
                                                  const std::optional<IdMaps>& maps) const;
  absl::StatusOr<struct stat> RootBelow(const Chain& chain) const;
  absl::StatusOr<bool> NeedsMapping(const Chain& chain, const std::optional<IdMaps>& maps) const;

  const std::unique_ptr<MetadataStore> store_;
  const std::unique_ptr<SnapshotDirs> dirs_;
  LayerBackend& backend_;
  const absl::Duration open_timeout_;
  UsageMeter meter_;
};

}  // namespace kapsule::snapshotter
