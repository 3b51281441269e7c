// How a layer is opened: its image, its blob, its view, its mount.
#include <fcntl.h>

#include <algorithm>
#include <set>

#include "core/base/log.h"
#include "snapshotter/blob_sources.h"
#include "snapshotter/layer_manager.h"

namespace kapsule::snapshotter {
namespace fs = std::filesystem;
namespace {

constexpr absl::Duration kUseTimeout = absl::Seconds(5);
// How often the content store is looked at for blobs that are read from registries.
constexpr absl::Duration kLocalPause = absl::Seconds(20);

bool IsFor(const FoundImage& image, const ModelLayer& layer) {
  return image.position == layer.depth && image.layer().digest == layer.label.digest;
}

// Lack of memory or descriptors here, not a limit that the layer exceeds.
absl::Status AsLocal(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status)) return status;
  return Unavailable("{}", Message(status));
}

// Where a snapshot's folder is renamed while mount(2) takes its time, the mount
// is still found through a descriptor of the folder.
fs::path TargetIn(const UniqueFd& folder) {
  return fmt::format("/proc/self/fd/{}/fs", folder.get());
}

// Of two failures, the one to report: one that may pass, else the first.
void Keep(absl::Status* kept, const absl::Status& status) {
  if (kept->ok() || (IsTransient(status) && !IsTransient(*kept))) *kept = status;
}

}  // namespace

void LayerManager::Open(const LayerTable::Work& work) {
  UniqueFd folder;
  const absl::Time start = absl::Now();
  absl::StatusOr<Opened> opened = OpenAndMount(work, &folder);
  if (events_.opened) events_.opened(opened.status(), absl::Now() - start);
  if (!opened.ok()) {
    log::warn("snapshot {}: {}", work.layer->id, Describe(opened.status()));
    table_.Fail(work, opened.status());
    return;
  }
  const std::string image = opened->image;
  if (table_.Commit(work, *std::move(opened))) {
    log::info("image {}, {}: mounted as snapshot {}", image, LayerTitle(*work.layer),
              work.layer->id);
    return;
  }
  const absl::Status unmounted = UnmountErofs(TargetIn(folder));
  if (!unmounted.ok()) log::error("snapshot {}: {}", work.layer->id, Describe(unmounted));
  table_.Fail(work, Unavailable("{} is not wanted any more", LayerTitle(*work.layer)));
}

absl::StatusOr<Opened> LayerManager::OpenAndMount(const LayerTable::Work& work, UniqueFd* folder) {
  absl::StatusOr<UniqueFd> opened_folder =
      OpenFile(Target(work.layer->id).parent_path(), O_PATH | O_DIRECTORY);
  // One that a power failure took is about to be made anew.
  if (absl::IsNotFound(opened_folder.status()))
    return Unavailable("{}", Message(opened_folder.status()));
  RETURN_IF_ERROR(opened_folder.status());
  *folder = *std::move(opened_folder);
  fs::path view;
  ASSIGN_OR_RETURN(Opened opened, OpenAnywhere(work, &view));
  if (!table_.BeginMount(work))
    return Unavailable("{} is not wanted any more", LayerTitle(*work.layer));
  if (IsErofsMount(TargetIn(*folder))) return opened;  // since an earlier run
  const absl::Status mounted = mounter_.Mount(view, TargetIn(*folder));
  if (!mounted.ok())
    return Annotate(AsLocal(mounted),
                    fmt::format("image {}, {}", opened.image, LayerTitle(*work.layer)));
  return opened;
}

// Any manifest that names this ciphertext at this place of this chain will do:
// whether a container's own image opens it too is asked by Await().
absl::StatusOr<Opened> LayerManager::OpenAnywhere(const LayerTable::Work& work, fs::path* view) {
  const ModelLayer& layer = *work.layer;
  absl::Status failure;
  if (work.last != nullptr) {
    absl::StatusOr<Opened> opened = OpenAs(layer, *work.last, layer.label.size, view);
    if (opened.ok() || IsTransient(opened.status())) return opened;
    Keep(&failure, opened.status());
  }
  std::set<oci::Digest> tried;
  ASSIGN_OR_RETURN(const std::vector<std::string> namespaces, Namespaces(layer.ns));
  for (const std::string& ns : namespaces) {
    for (const FoundImage& image : FindLayer(ns, layer, &failure)) {
      if (!tried.insert(image.manifest->digest).second) continue;
      if (!image.manifest->CanBeGenuine(image.position)) {
        Keep(&failure,
             PermissionDenied("image {}, {}: a plain layer that is not what its diff_id names",
                              image.title(), LayerTitle(layer)));
        continue;
      }
      const oci::Descriptor& found = image.layer();
      // While a pull is under way there may be no image record yet, and what containerd
      // notes of a source lacks its port.
      std::vector<std::string> sources;
      if (!image.name.empty())
        sources = SourcesOf(client_, ns, image.manifest->digest, image.name, LookupDeadline());
      absl::StatusOr<Opened> opened = OpenAs(layer,
                                             {.image = image.title(),
                                              .encrypted = oci::IsEncrypted(found.media_type),
                                              .annotations = found.annotations,
                                              .sources = std::move(sources)},
                                             found.size, view);
      if (opened.ok()) return opened;
      Keep(&failure, opened.status());
    }
  }
  if (!failure.ok()) return failure;
  return Unavailable("{} in chain {}: no image of containerd names it", LayerTitle(layer),
                     layer.chain_id.text());
}

absl::StatusOr<Opened> LayerManager::OpenAs(const ModelLayer& layer, Opened opened, uint64_t size,
                                            fs::path* view) {
  const oci::Digest& digest = layer.label.digest;
  const std::string title = fmt::format("image {}, {}", opened.image, LayerTitle(layer));
  const absl::Time deadline = absl::Now() + absl::Milliseconds(config_.open_timeout_ms);
  bool remote = false;
  absl::StatusOr<UniqueFd> blob = OpenBlob(opened, digest, size, deadline, &remote);
  absl::StatusOr<UniqueFd> copy = blob.ok() ? blob->Duplicate() : blob.status();
  if (!copy.ok()) return Annotate(AsLocal(copy.status()), title);
  absl::StatusOr<fs::path> path = calls_.open(digest, size, opened.encrypted, *std::move(copy),
                                              opened.annotations, deadline, remote);
  if (!path.ok()) return Annotate(path.status(), title);
  *view = *std::move(path);
  if (remote) {
    const absl::MutexLock lock(&mu_);
    remote_.insert_or_assign(digest, size);
    return opened;
  }
  pins_->Hold(digest, *std::move(blob));
  // It may have been opened as remote, by an earlier run too.
  if (!ReadLocally(digest, size)) {
    log::warn("{}: read from the registry as before", title);
    const absl::MutexLock lock(&mu_);
    remote_.insert_or_assign(digest, size);  // tried again
  }
  return opened;
}

absl::StatusOr<UniqueFd> LayerManager::OpenBlob(const Opened& opened, const oci::Digest& digest,
                                                uint64_t size, absl::Time deadline, bool* remote) {
  absl::StatusOr<UniqueFd> blob = pins_->Open(digest, size);
  if (!absl::IsUnavailable(blob.status()) || fetch_.open == nullptr) return blob;
  const auto index = opened.annotations.find(oci::kIndexAnnotation);
  if (index == opened.annotations.end() || opened.sources.empty()) return blob;
  ASSIGN_OR_RETURN(oci::IndexRef ref, oci::IndexRef::FromJson(index->second));
  *remote = true;
  return fetch_.open({digest, size, std::move(ref), opened.sources}, deadline);
}

// Has kapsule-fuse read the blob from the content store; false where it cannot, or it
// is not there.
bool LayerManager::ReadLocally(const oci::Digest& digest, uint64_t size) {
  const absl::StatusOr<UniqueFd> blob = pins_->Open(digest, size);
  if (!blob.ok()) return false;
  const absl::Status used = calls_.use_local(digest, *blob, absl::Now() + kUseTimeout);
  if (!used.ok()) return false;
  if (fetch_.forget != nullptr) {
    fetch_.forget(digest);
    fetch_.close(digest);
  }
  const absl::MutexLock lock(&mu_);
  remote_.erase(digest);
  return true;
}

void LayerManager::FindLocal() {
  for (;;) {
    std::map<oci::Digest, uint64_t> remote;
    {
      const absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), kLocalPause)) return;
      remote = remote_;
    }
    for (const auto& [digest, size] : remote) {
      if (ReadLocally(digest, size))
        log::info("blob {} is in the content store now, and read there", digest.text());
    }
  }
}

absl::StatusOr<std::vector<std::string>> LayerManager::Namespaces(const std::string& first) {
  ASSIGN_OR_RETURN(const std::vector<std::string> all, client_.ListNamespaces(LookupDeadline()));
  std::vector<std::string> ordered;
  if (!first.empty()) ordered.push_back(first);
  for (const std::string& ns : all) {
    if (ns != first) ordered.push_back(ns);
  }
  return ordered;
}

// What was found before an error counts. The exact look-up comes first, so that
// images of the same chain with other blobs are not in its way; the other one
// knows images by name.
std::vector<FoundImage> LayerManager::FindLayer(const std::string& ns, const ModelLayer& layer,
                                                absl::Status* failure) {
  std::vector<FoundImage> images;
  const auto take = [&](const absl::StatusOr<std::vector<FoundImage>>& found) {
    if (!found.ok()) return Keep(failure, found.status());
    for (const FoundImage& image : *found) {
      if (!IsFor(image, layer)) continue;
      const auto known = std::find_if(images.begin(), images.end(), [&](const FoundImage& other) {
        return other.manifest->digest == image.manifest->digest;
      });
      if (known == images.end()) {
        images.push_back(image);
      } else {
        known->name = image.name;
      }
    }
  };
  take(finder_.OfLayer(ns, layer.label.digest, layer.depth, layer.chain_id, LookupDeadline()));
  take(finder_.OfChain(ns, layer.chain_id, LookupDeadline()));
  return images;
}

}  // namespace kapsule::snapshotter
