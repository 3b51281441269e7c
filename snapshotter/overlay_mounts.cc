#include "snapshotter/overlay_mounts.h"

#include <unistd.h>

namespace kapsule::snapshotter {
namespace {

Mount Bind(const std::filesystem::path& source, bool writable) {
  return {"bind", source.string(), {writable ? "rw" : "ro", "rbind"}};
}

// With "index=on" overlayfs refuses an upper directory that an earlier mount
// still uses, which containerd does all the time.
bool KernelHasIndex() { return access("/sys/module/overlay/parameters/index", F_OK) == 0; }

}  // namespace

absl::Status TooManyLayers(std::string_view what, size_t layers) {
  return FailedPrecondition(
      "{} has {} layers, more than the {} that overlayfs takes: use an image with fewer layers",
      what, layers, kMaxLowerDirs);
}

absl::StatusOr<Mount> SnapshotMount(const SnapshotDirs& dirs, int64_t id, bool writable,
                                    const std::vector<int64_t>& parents,
                                    const std::set<int64_t>& linked, bool over_nothing) {
  if (parents.empty() && !over_nothing) return Bind(dirs.Fs(id), writable);
  if (!writable && parents.size() == 1) return Bind(dirs.Fs(parents.front()), false);
  if (parents.size() > kMaxLowerDirs) return TooManyLayers("the snapshot", parents.size());

  // No "userxattr": only user namespaces need it, and no EROFS mounts there.
  Mount mount{"overlay", "overlay", {}};
  if (KernelHasIndex()) mount.options.push_back("index=off");
  if (writable) {
    mount.options.push_back("workdir=" + dirs.Work(id).string());
    mount.options.push_back("upperdir=" + dirs.Fs(id).string());
  }
  // Of several lower directories containerd passes "<id>/fs", relative to the
  // folder that they share.
  std::string lower = "lowerdir=";
  size_t shortened = lower.size();
  if (parents.empty()) lower += dirs.Empty().string();
  for (const int64_t parent : parents) {
    if (lower.back() != '=') lower += ':';
    const bool by_link = linked.contains(parent);
    lower += (by_link ? dirs.LinkedFs(id, parent) : dirs.Fs(parent)).string();
    shortened += std::to_string(parent).size() + sizeof("/fs:") - 1;
    if (by_link) shortened += std::to_string(id).size() + sizeof("/all/") - 1;
  }
  size_t passed = parents.size() <= 1 ? lower.size() : shortened;
  mount.options.push_back(std::move(lower));
  for (size_t i = 0; i + 1 < mount.options.size(); ++i) passed += mount.options[i].size() + 1;
  if (passed > kMaxMountOptions)
    return FailedPrecondition(
        "{} layers take {} bytes of mount options, more than {}: use an image with fewer layers"
        " or a shorter --root",
        parents.size(), passed, kMaxMountOptions);
  return mount;
}

}  // namespace kapsule::snapshotter
