#include "snapshotter/snapshotter.h"

#include <sys/stat.h>

#include <cerrno>
#include <limits>
#include <set>

#include <absl/time/clock.h>

#include "core/base/log.h"
#include "core/oci/annotations.h"
#include "snapshotter/filters.h"
#include "snapshotter/overlay_mounts.h"

namespace kapsule::snapshotter {
namespace {

const std::string* FindLabel(const Labels& labels, const char* name) {
  const auto found = labels.find(name);
  return found == labels.end() ? nullptr : &found->second;
}

absl::Status CheckName(const std::string& name, const char* what) {
  if (name.empty()) return InvalidArgument("the {} is empty", what);
  return absl::OkStatus();
}

// The chain of a layer on `parent`, which is named by its own chain: as containerd
// keeps it ("default/7/sha256:…") or as a labelled Prepare did ("sha256:…").
std::optional<oci::Digest> ChainAbove(const std::string& parent, const oci::Digest& diff_id) {
  if (parent.empty()) return diff_id;
  const absl::StatusOr<oci::Digest> below = oci::Digest::Parse(SnapshotKey::Parse(parent).client);
  if (!below.ok()) return std::nullopt;
  return oci::ChainIds({*below, diff_id}).back();
}

// A snapshot is shared by all who ask for its chain. Where they do not mean the
// same blob on the same parent, the second must fail here: answered with
// AlreadyExists, containerd would only say that it finds no such snapshot.
absl::Status CheckSameLayer(const Record& known, const std::string& parent,
                            const oci::LayerLabel& label) {
  if (!known.layer) return FailedPrecondition("snapshot {} is no Kapsule layer", known.info.name);
  if (known.info.parent != parent)
    return FailedPrecondition("Kapsule layer {} is here on parent \"{}\", not on \"{}\"",
                              known.info.name, known.info.parent, parent);
  if (known.layer->label.digest != label.digest)
    return FailedPrecondition(
        "Kapsule layer {} is here as blob {}, this image has it as {}: remove the other image "
        "first",
        known.info.name, known.layer->label.digest.text(), label.digest.text());
  return absl::OkStatus();
}

// Whoever unpacks looks at no byte below, and waits for no key: but anybody may choose
// such a key, so model layers are not in its mounts.
bool IsUnpacking(Kind kind, const SnapshotKey& key) {
  return kind == Kind::kActive && key.extracted_chain.has_value();
}

}  // namespace

Snapshotter::Snapshotter(std::unique_ptr<MetadataStore> store, std::unique_ptr<SnapshotDirs> dirs,
                         LayerBackend& backend, absl::Duration open_timeout)
    : store_(std::move(store)),
      dirs_(std::move(dirs)),
      backend_(backend),
      open_timeout_(open_timeout) {}

absl::StatusOr<std::unique_ptr<Snapshotter>> Snapshotter::Open(const std::filesystem::path& root,
                                                               std::unique_ptr<MetadataStore> store,
                                                               LayerBackend& backend,
                                                               absl::Duration open_timeout) {
  ASSIGN_OR_RETURN(std::unique_ptr<SnapshotDirs> dirs, SnapshotDirs::Open(root));
  ASSIGN_OR_RETURN(const std::set<int64_t> ids, store->ListIds());
  ASSIGN_OR_RETURN(const std::set<int64_t> lost, dirs->Sweep(ids));
  std::unique_ptr<Snapshotter> made(
      new Snapshotter(std::move(store), std::move(dirs), backend, open_timeout));
  for (const int64_t id : lost) {  // a parent comes before its children
    const absl::Status restored = made->Restore(id);
    if (!restored.ok()) log::warn("{}", Describe(restored));
  }
  return made;
}

// What was lost with the directory is what its container had written, none of it synced.
absl::Status Snapshotter::Restore(int64_t id) {
  ASSIGN_OR_RETURN(const Record record, store_->GetById(id));
  const Info& info = record.info;
  if (info.kind == Kind::kCommitted && !record.layer)
    return DataLoss("the files of snapshot {} are lost: remove its images and pull them again",
                    info.name);
  ASSIGN_OR_RETURN(const std::optional<IdMaps> maps, IdMaps::FromLabels(info.labels));
  ASSIGN_OR_RETURN(const Chain chain, store_->GetChain(info.parent));
  absl::StatusOr<SnapshotDirs::Staged> staged = info.kind == Kind::kCommitted
                                                    ? dirs_->Stage(false, 0, 0)
                                                    : StageAbove(info.kind, chain, maps);
  if (!staged.ok()) return Annotate(staged.status(), "make snapshot " + info.name + " anew");
  return dirs_->Place(*staged, id);
}

absl::StatusOr<std::vector<Mount>> Snapshotter::Prepare(const std::string& key,
                                                        const std::string& parent,
                                                        const Labels& labels) {
  const SnapshotKey parsed = SnapshotKey::Parse(key);
  if (FindLabel(labels, kSnapshotRefLabel) != nullptr) {
    if (FindLabel(labels, oci::kLayerLabel) != nullptr)
      return PrepareLayer(parsed.ns, parent, labels);
  } else if (parsed.extracted_chain) {
    const absl::Status found = backend_.PreRegister(parsed.ns, *parsed.extracted_chain);
    if (absl::IsAborted(found)) return found;
    // Then containerd fetches and unpacks the layer, which an encrypted one will
    // not survive: the line below is what explains it.
    if (!found.ok())
      log::warn("layer {} of namespace {} is unpacked as an ordinary one: {}",
                parsed.extracted_chain->text(), parsed.ns, Describe(found));
  }
  return Create(Kind::kActive, key, parent, labels);
}

absl::StatusOr<std::vector<Mount>> Snapshotter::View(const std::string& key,
                                                     const std::string& parent,
                                                     const Labels& labels) {
  return Create(Kind::kView, key, parent, labels);
}

absl::Status Snapshotter::PrepareLayer(const std::string& ns, const std::string& parent,
                                       const Labels& labels) {
  const std::string& name = *FindLabel(labels, kSnapshotRefLabel);
  absl::StatusOr<oci::Digest> chain_id = oci::Digest::Parse(name);
  if (!chain_id.ok()) return Annotate(chain_id.status(), kSnapshotRefLabel);
  absl::StatusOr<oci::LayerLabel> label =
      oci::LayerLabel::FromJson(*FindLabel(labels, oci::kLayerLabel));
  if (!label.ok()) return Annotate(label.status(), oci::kLayerLabel);

  ASSIGN_OR_RETURN(const Chain below, store_->GetChain(parent));
  absl::StatusOr<Record> known = store_->Get(name);
  if (absl::IsNotFound(known.status())) {
    ASSIGN_OR_RETURN(SnapshotDirs::Staged staged, dirs_->Stage(false, 0, 0));
    const absl::StatusOr<ModelLayer> made =
        store_->CreateLayer(name, ns, below, labels, *chain_id, *label,
                            [&](int64_t id) { return dirs_->Place(staged, id); });
    if (made.ok()) {
      log::info("layer {} of {} bytes is Kapsule layer {}", label->digest.text(), label->size,
                name);
      backend_.Add(*made);
    } else if (!absl::IsAlreadyExists(made.status())) {
      return made.status();
    }
    known = store_->Get(name);  // ours, or that of whoever was quicker
  }
  RETURN_IF_ERROR(known.status());
  RETURN_IF_ERROR(CheckSameLayer(*known, parent, *label));
  return AlreadyExists("target snapshot {} is there", name);
}

absl::StatusOr<std::vector<Mount>> Snapshotter::Create(Kind kind, const std::string& key,
                                                       const std::string& parent,
                                                       const Labels& labels) {
  RETURN_IF_ERROR(CheckName(key, "key"));
  const SnapshotKey parsed = SnapshotKey::Parse(key);
  ASSIGN_OR_RETURN(const std::optional<IdMaps> maps, IdMaps::FromLabels(labels));
  ASSIGN_OR_RETURN(const Chain chain, store_->GetChain(parent));
  // Before anything is made, so that failing leaves nothing, and before a wait in vain for
  // layers that are too many. The longest id stands for the one to come.
  RETURN_IF_ERROR(
      MountsOf(kind, parsed, std::numeric_limits<int64_t>::max(), chain, maps).status());
  RETURN_IF_ERROR(AwaitLayers(kind, parsed, chain));
  ASSIGN_OR_RETURN(SnapshotDirs::Staged staged, StageAbove(kind, chain, maps));
  ASSIGN_OR_RETURN(const int64_t id, store_->Create(kind, key, chain, labels, [&](int64_t made) {
    return dirs_->Place(staged, made);
  }));
  return MountsOf(kind, parsed, id, chain, maps);
}

absl::StatusOr<struct stat> Snapshotter::RootBelow(const Chain& chain) const {
  struct stat parent {};  // root's, at the bottom and above a view that may not be mounted yet
  if (!chain.ids.empty() && !chain.IsLayerOnTop()) {
    const std::string path = dirs_->Fs(chain.ids.front()).string();
    if (stat(path.c_str(), &parent) != 0) return ErrnoStatus(errno, "parent " + path);
  }
  return parent;
}

absl::StatusOr<SnapshotDirs::Staged> Snapshotter::StageAbove(
    Kind kind, const Chain& chain, const std::optional<IdMaps>& maps) const {
  ASSIGN_OR_RETURN(const struct stat parent, RootBelow(chain));
  // The directory for writing is not mapped: its owners are those on the host.
  if (maps && !chain.ids.empty())
    return dirs_->Stage(kind == Kind::kActive, maps->root_uid, maps->root_gid, true);
  return dirs_->Stage(kind == Kind::kActive, parent.st_uid, parent.st_gid);
}

absl::Status Snapshotter::AwaitLayers(Kind kind, const SnapshotKey& key, const Chain& chain) {
  if (chain.layers.empty() || IsUnpacking(kind, key)) return absl::OkStatus();
  return backend_.Await(key, chain.layers, absl::Now() + open_timeout_);
}

absl::StatusOr<std::vector<Mount>> Snapshotter::MountsOf(Kind kind, const SnapshotKey& key,
                                                         int64_t id, const Chain& chain,
                                                         const std::optional<IdMaps>& maps) const {
  // containerd mounts what it gets for an image volume for writing; over a
  // model there is nothing to write to.
  const bool read_only = kind == Kind::kView || (key.image_volume && !chain.layers.empty());
  ASSIGN_OR_RETURN(const bool mapped, NeedsMapping(chain, maps));
  // containerd maps a copy of the mount that holds all directories; before 2.3 without
  // those below it, so model layers would be empty. Nobody owns their files anyway.
  std::set<int64_t> linked;
  if (mapped)
    for (const ModelLayer& layer : chain.layers) linked.insert(layer.id);
  std::vector<int64_t> below = chain.ids;
  if (IsUnpacking(kind, key))
    for (const ModelLayer& layer : chain.layers) std::erase(below, layer.id);
  ASSIGN_OR_RETURN(Mount mount, SnapshotMount(*dirs_, id, !read_only, below, linked,
                                              /*over_nothing=*/!chain.ids.empty()));
  if (mapped)
    mount.options.insert(mount.options.begin(), {"uidmap=" + maps->uids, "gidmap=" + maps->gids});
  return std::vector<Mount>{std::move(mount)};
}

absl::StatusOr<bool> Snapshotter::NeedsMapping(const Chain& chain,
                                               const std::optional<IdMaps>& maps) const {
  if (!maps || chain.layers.size() == chain.ids.size()) return false;
  // A containerd that was not told of our capability "remap-ids" has changed all
  // owners below itself, in a layer of its own.
  ASSIGN_OR_RETURN(const struct stat below, RootBelow(chain));
  return below.st_uid != maps->root_uid;
}

absl::StatusOr<std::vector<Mount>> Snapshotter::Mounts(const std::string& key) {
  ASSIGN_OR_RETURN(const Record record, store_->Get(key));
  if (record.info.kind == Kind::kCommitted)
    return FailedPrecondition("snapshot {} is not active or a view", key);
  ASSIGN_OR_RETURN(const Chain chain, store_->GetChain(record.info.parent));
  ASSIGN_OR_RETURN(const std::optional<IdMaps> maps, IdMaps::FromLabels(record.info.labels));
  const SnapshotKey parsed = SnapshotKey::Parse(key);
  RETURN_IF_ERROR(AwaitLayers(record.info.kind, parsed, chain));
  return MountsOf(record.info.kind, parsed, record.id, chain, maps);
}

absl::Status Snapshotter::Commit(const std::string& name, const std::string& key,
                                 const Labels& labels) {
  RETURN_IF_ERROR(CheckName(name, "name"));
  ASSIGN_OR_RETURN(const Record record, store_->Get(key));
  if (record.info.kind != Kind::kActive)
    return FailedPrecondition("snapshot {} is not active", key);
  // Outside the transaction: it may take long. Nobody writes there any more.
  Usage usage;
  if (!record.layer) {
    ASSIGN_OR_RETURN(usage, DiskUsage(dirs_->Fs(record.id)));
    // That a directory is not there says at the next start that its files are lost.
    RETURN_IF_ERROR(dirs_->Sync());
  }
  RETURN_IF_ERROR(store_->Commit(name, key, labels, usage));
  meter_.Forget(record.id);
  if (record.layer) backend_.Add(*record.layer);
  return absl::OkStatus();
}

absl::Status Snapshotter::ClaimLayer(const std::string& directory, const oci::LayerLabel& label) {
  const std::optional<int64_t> id = dirs_->IdOf(directory);
  if (!id) return NotFound("{} is no directory of a snapshot", directory);
  ASSIGN_OR_RETURN(const Record record, store_->GetById(*id));
  const SnapshotKey key = SnapshotKey::Parse(record.info.name);
  const std::optional<oci::Digest> chain_id = ChainAbove(record.info.parent, label.diff_id);
  if (!chain_id || key.extracted_chain != chain_id)
    return InvalidArgument("snapshot {} is not made to unpack {} on \"{}\"", record.info.name,
                           label.diff_id.text(), record.info.parent);
  ASSIGN_OR_RETURN(const Chain below, store_->GetChain(record.info.parent));
  RETURN_IF_ERROR(
      store_->ClaimLayer({*id, *chain_id, static_cast<uint32_t>(below.ids.size()), label, key.ns}));
  log::info("layer {} of {} bytes becomes Kapsule layer {}", label.digest.text(), label.size,
            chain_id->text());
  return absl::OkStatus();
}

absl::StatusOr<bool> Snapshotter::AnyEncrypted(const std::vector<std::string>& directories) {
  for (const std::string& directory : directories) {
    const std::optional<int64_t> id = dirs_->IdOf(directory);
    if (!id) continue;
    const absl::StatusOr<Record> record = store_->GetById(*id);
    if (absl::IsNotFound(record.status())) continue;
    RETURN_IF_ERROR(record.status());
    const std::optional<ModelLayer>& layer = record->layer;
    if (layer && layer->label.digest != layer->label.diff_id) return true;  // no plain tar
  }
  return false;
}

absl::Status Snapshotter::Remove(const std::string& key) {
  ASSIGN_OR_RETURN(const Record removed, store_->Remove(key));
  meter_.Forget(removed.id);
  // Unmounted by its path, so before the directory gets another name.
  if (removed.layer && removed.info.kind == Kind::kCommitted) backend_.Remove(*removed.layer);
  dirs_->Discard(removed.id);
  return absl::OkStatus();
}

absl::StatusOr<Info> Snapshotter::Stat(const std::string& key) {
  ASSIGN_OR_RETURN(Record record, store_->Get(key));
  return std::move(record.info);
}

absl::StatusOr<Info> Snapshotter::Update(const Info& info, const std::vector<std::string>& paths) {
  return store_->Update(info, paths);
}

absl::StatusOr<std::vector<Info>> Snapshotter::List(const std::vector<std::string>& filters) {
  ASSIGN_OR_RETURN(const Filters filter, Filters::Parse(filters));
  ASSIGN_OR_RETURN(std::vector<Info> all, store_->List());
  std::erase_if(all, [&](const Info& info) { return !filter.Match(info); });
  return all;
}

absl::StatusOr<Usage> Snapshotter::GetUsage(const std::string& key) {
  ASSIGN_OR_RETURN(const Record record, store_->Get(key));
  if (record.info.kind != Kind::kActive) return record.usage;
  return meter_.Measure(record.id, dirs_->Fs(record.id));
}

void Snapshotter::Cleanup() { dirs_->DeleteDiscarded(); }

}  // namespace kapsule::snapshotter
