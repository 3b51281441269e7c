// Opens, mounts, authorises and closes Kapsule layers, given a data plane.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/base/file.h"
#include "core/mounts/erofs_mount.h"
#include "snapshotter/authoriser.h"
#include "snapshotter/blob_pins.h"
#include "snapshotter/image_finder.h"
#include "snapshotter/layer_events.h"
#include "snapshotter/layer_table.h"
#include "snapshotter/remote_blob.h"

namespace kapsule::snapshotter {

// What is asked of kapsule-fuse; as in DataPlane (data_plane.h).
struct DataPlaneCalls {
  std::function<absl::StatusOr<std::filesystem::path>(
      const oci::Digest&, uint64_t size, bool encrypted, UniqueFd blob, const oci::Annotations&,
      absl::Time deadline, bool remote)>
      open;
  Authoriser::Compare authorise;
  std::function<absl::Status(const oci::Digest&, absl::Time deadline)> close;
  std::function<absl::Status(const oci::Digest&, const UniqueFd& blob, absl::Time deadline)>
      use_local;
};

// What is asked of kapsule-fetch; as in BlobFetcher.
struct FetchCalls {
  std::function<absl::StatusOr<UniqueFd>(const RemoteBlob&, absl::Time deadline)> open;
  std::function<void(const oci::Digest&)> close, forget;
};

// ModelLayers without the process. Thread-safe.
class LayerManager {
 public:
  // Sweeps pins, and remembers `layers` as to be opened. `is_recorded` is called by Add()
  // and Await().
  static absl::StatusOr<std::unique_ptr<LayerManager>> Create(
      const Config& config, const std::vector<ModelLayer>& layers,
      LayerTable::IsRecorded is_recorded = nullptr);
  ~LayerManager();

  // The data plane is that of an earlier run and has `views` (hex digests): the
  // mounts of known layers with a view are kept, all others below <root>/l are
  // detached, and views that no layer needs are closed. Before Run().
  void Adopt(const std::vector<std::string>& views);
  // Starts the workers. Once, when the data plane serves.
  void Run(DataPlaneCalls calls, FetchCalls fetch, LayerEvents events = {});
  // From now on Stop() leaves the mounts.
  void Leave() { left_ = true; }
  // Ends the workers and unmounts every view; the data plane is not called
  // afterwards, but may still call here.
  void Stop();
  // Whether EROFS is mounted below <root>/l.
  bool AnyMounted() const;
  // "file" or "loop"; "auto" until a mount has told.
  std::string view_mount() const;
  std::map<std::string, size_t> LayerStates() const { return table_.States(); }

  // As ModelLayers.
  absl::Status PreRegister(const std::string& ns, const oci::Digest& chain_id);
  void Add(const ModelLayer& layer) { table_.Add(layer); }
  absl::Status Await(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                     absl::Time deadline);
  void Remove(const ModelLayer& layer);

  // As DataPlane::Options. OnDeath() detaches every mount below <root>/l.
  void OnDeath();
  void OnRestart() { table_.Hurry(); }
  void OnTakeover() { table_.Succeeded(); }
  // Of these views (hex digests) closes those that no layer needs.
  void CloseUnneeded(const std::vector<std::string>& views);

 private:
  LayerManager(const Config& config, std::unique_ptr<BlobPins> pins, ViewMount view_mount,
               LayerTable::IsRecorded is_recorded);

  void Work();
  void Open(const LayerTable::Work& work);
  // `folder`: of the snapshot, to find the mount by.
  absl::StatusOr<Opened> OpenAndMount(const LayerTable::Work& work, UniqueFd* folder);
  absl::StatusOr<Opened> OpenAnywhere(const LayerTable::Work& work, std::filesystem::path* view);
  absl::StatusOr<Opened> OpenAs(const ModelLayer& layer, Opened opened, uint64_t size,
                                std::filesystem::path* view);
  // The blob, from the content store or else, `remote` then, of its registry.
  absl::StatusOr<UniqueFd> OpenBlob(const Opened& opened, const oci::Digest& digest, uint64_t size,
                                    absl::Time deadline, bool* remote);
  // Tells kapsule-fuse of blobs that have come to the content store since.
  void FindLocal();
  bool ReadLocally(const oci::Digest& digest, uint64_t size);
  absl::StatusOr<std::vector<std::string>> Namespaces(const std::string& first);
  std::vector<FoundImage> FindLayer(const std::string& ns, const ModelLayer& layer,
                                    absl::Status* failure);
  void Check(const LayerTable::Work& work);
  void Close(const LayerTable::Work& work);
  void Unmount(int64_t id);
  void DetachAll();

  absl::Time LookupDeadline() const;
  std::filesystem::path Target(int64_t id) const;

  // Constant after construction, and the calls after Run().
  const Config config_;
  const std::unique_ptr<BlobPins> pins_;
  DataPlaneCalls calls_;
  FetchCalls fetch_;
  LayerEvents events_;

  containerd::Client client_;
  ImageFinder finder_;
  Authoriser authoriser_;
  LayerTable table_;
  ErofsMounter mounter_;
  std::vector<std::thread> workers_;

  absl::Mutex mu_;  // never held over I/O
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::map<oci::Digest, uint64_t> remote_ ABSL_GUARDED_BY(mu_);  // sizes of blobs read so
  bool left_ = false;  // of the thread that calls Leave() and Stop()
};

}  // namespace kapsule::snapshotter
