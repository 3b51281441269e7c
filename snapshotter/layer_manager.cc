#include "snapshotter/layer_manager.h"

#include <algorithm>
#include <set>

#include "core/base/log.h"
#include "snapshotter/pre_register.h"

namespace kapsule::snapshotter {
namespace fs = std::filesystem;
namespace {

constexpr int kWorkers = 4;
constexpr absl::Duration kCloseTimeout = absl::Seconds(5);

}  // namespace

absl::StatusOr<std::unique_ptr<LayerManager>> LayerManager::Create(
    const Config& config, const std::vector<ModelLayer>& layers,
    LayerTable::IsRecorded is_recorded) {
  ASSIGN_OR_RETURN(const ViewMount view_mount, ParseViewMount(config.view_mount));
  RETURN_IF_ERROR(MakeDirs(config.root / "l", 0700));
  std::set<oci::Digest> keep;
  for (const ModelLayer& layer : layers) keep.insert(layer.label.digest);
  ASSIGN_OR_RETURN(std::unique_ptr<BlobPins> pins,
                   BlobPins::Start(config.root / "blobs", config.content_root, keep));
  std::unique_ptr<LayerManager> manager(
      new LayerManager(config, std::move(pins), view_mount, std::move(is_recorded)));
  for (const ModelLayer& layer : layers) manager->Add(layer);
  return manager;
}

LayerManager::LayerManager(const Config& config, std::unique_ptr<BlobPins> pins,
                           ViewMount view_mount, LayerTable::IsRecorded is_recorded)
    : config_(config),
      pins_(std::move(pins)),
      client_(config.containerd_address),
      finder_(&client_),
      authoriser_(
          &client_, &finder_,
          [this](const oci::Digest& digest, const oci::Annotations& annotations,
                 absl::Time deadline) { return calls_.authorise(digest, annotations, deadline); }),
      table_(std::move(is_recorded)),
      mounter_(view_mount) {}

LayerManager::~LayerManager() { Stop(); }

void LayerManager::Stop() {
  table_.Stop();
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  if (left_) return;
  for (const int64_t id : table_.Stop()) Unmount(id);
  DetachAll();
}

void LayerManager::Adopt(const std::vector<std::string>& views) {
  const std::set<std::string> served(views.begin(), views.end());
  std::error_code error;
  const fs::path folder = fs::canonical(config_.root / "l", error);
  std::set<std::string> kept;  // of layers whose view is served
  for (const auto& [id, digest] : table_.Digests())
    if (served.contains(digest.hex())) kept.insert(folder / std::to_string(id) / "fs");
  const absl::StatusOr<std::vector<std::string>> mounts = ErofsMountsBelow(folder);
  if (error || !mounts.ok()) log::error("look for mounts below {} failed", folder.string());
  for (const std::string& mount : mounts.value_or(std::vector<std::string>())) {
    if (kept.erase(mount) != 0) continue;  // one at each place
    log::info("detaching {}, which no layer needs or no view is behind", mount);
    const absl::Status status = UnmountErofs(mount);
    if (!status.ok()) log::error("{}", Describe(status));
  }
  CloseUnneeded(views);
}

void LayerManager::CloseUnneeded(const std::vector<std::string>& views) {
  for (const std::string& view : views) {
    const absl::StatusOr<oci::Digest> digest = oci::Digest::Parse("sha256:" + view);
    if (digest.ok()) table_.CloseUnneeded(*digest);
  }
}

bool LayerManager::AnyMounted() const {
  const absl::StatusOr<std::vector<std::string>> mounts = ErofsMountsBelow(config_.root / "l");
  return mounts.ok() && !mounts->empty();
}

void LayerManager::Run(DataPlaneCalls calls, FetchCalls fetch, LayerEvents events) {
  calls_ = std::move(calls);
  fetch_ = std::move(fetch);
  events_ = std::move(events);
  for (int i = 0; i < kWorkers; ++i) workers_.emplace_back([this] { Work(); });
  workers_.emplace_back([this] { FindLocal(); });
}

std::string LayerManager::view_mount() const {
  switch (mounter_.way()) {
    case ViewMount::kFile:
      return "file";
    case ViewMount::kLoop:
      return "loop";
    case ViewMount::kAuto:
      break;
  }
  return "auto";
}

absl::Time LayerManager::LookupDeadline() const {
  return absl::Now() + absl::Milliseconds(config_.lookup_timeout_ms);
}

fs::path LayerManager::Target(int64_t id) const {
  return config_.root / "l" / std::to_string(id) / "fs";
}

absl::Status LayerManager::PreRegister(const std::string& ns, const oci::Digest& chain_id) {
  const absl::Status status = PreRegisterImage(&client_, &finder_, config_.snapshotter_name, ns,
                                               chain_id, LookupDeadline());
  if (status.ok() || IsTransient(status)) return status;
  log::warn("chain {} of namespace {}: {}", chain_id.text(), ns, Describe(status));
  return absl::OkStatus();
}

absl::Status LayerManager::Await(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                                 absl::Time deadline) {
  if (chain.empty()) return absl::OkStatus();
  while (true) {
    const absl::StatusOr<LayerTable::Ready> ready = table_.Await(chain, deadline);
    if (absl::IsNotFound(ready.status())) return PermissionDenied("{}", Message(ready.status()));
    RETURN_IF_ERROR(ready.status());
    const absl::Status status = authoriser_.Authorise(key, chain, *ready, deadline);
    if (table_.generation() == ready->generation) {
      if (absl::IsPermissionDenied(status) && events_.refused) events_.refused(status);
      if (!absl::IsDeadlineExceeded(status)) return status;
      return Unavailable("{}", Message(status));
    }
    // kapsule-fuse died meanwhile: the answer was about views that are gone.
  }
}

void LayerManager::Remove(const ModelLayer& layer) {
  table_.Remove(layer.id);
  Unmount(layer.id);
}

void LayerManager::OnDeath() {
  for (const int64_t id : table_.Reset()) Unmount(id);
  DetachAll();
}

// Also what an earlier run mounted, and has not been opened again.
void LayerManager::DetachAll() {
  for (const absl::Status& status :
       {DetachErofsBelow(config_.root / "l"), DetachLoopsOfViews(config_.root / "views")})
    if (!status.ok()) log::error("{}", Describe(status));
}

void LayerManager::Unmount(int64_t id) {
  const absl::Status status = UnmountErofs(Target(id));
  if (!status.ok()) log::error("{}", Describe(status));
}

void LayerManager::Work() {
  while (const std::optional<LayerTable::Work> work = table_.Take()) {
    if (work->check) {
      Check(*work);
    } else if (work->layer) {
      Open(*work);
    } else {
      Close(*work);
    }
  }
}

// What a successor does not have any more: reads of it fail for ever.
void LayerManager::Check(const LayerTable::Work& work) {
  const absl::Status status =
      calls_.authorise(work.digest, work.last->annotations,
                       absl::Now() + absl::Milliseconds(config_.open_timeout_ms));
  if (!absl::IsNotFound(status)) return table_.Checked(work, status);
  log::error(
      "image {}, {}: kapsule-fuse was succeeded, and now there is no view or no key of it ({}): it "
      "is mounted again; containers that run may have I/O errors until they are restarted",
      work.last->image, LayerTitle(*work.layer), Describe(status));
  if (table_.Lost(work)) Unmount(work.layer->id);
  table_.Fail(work,
              Unavailable("{} was lost when kapsule-fuse was succeeded", LayerTitle(*work.layer)));
}

void LayerManager::Close(const LayerTable::Work& work) {
  const absl::Status status = calls_.close(work.digest, absl::Now() + kCloseTimeout);
  if (!status.ok() && !absl::IsNotFound(status))
    log::warn("close layer {}: {}", work.digest.text(), Describe(status));
  if (!IsTransient(status)) {
    pins_->Release(work.digest);
    if (fetch_.close != nullptr) fetch_.close(work.digest);
    const absl::MutexLock lock(&mu_);
    remote_.erase(work.digest);
  }
  table_.Closed(work, status);
}

}  // namespace kapsule::snapshotter
