#include "core/mounts/erofs_mount.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <cerrno>
#include <set>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/mounts/loop_device.h"
#include "core/mounts/mountinfo.h"

namespace kapsule {
namespace fs = std::filesystem;
namespace {

constexpr char kBdiFolder[] = "/sys/class/bdi";
constexpr unsigned long kMountFlags = MS_RDONLY | MS_NOSUID | MS_NODEV;

// The names are a global sequence and cannot be derived from a mount.
std::set<fs::path> ErofsDevices() {
  std::set<fs::path> devices;
  std::error_code error;
  for (fs::directory_iterator it(kBdiFolder, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().filename().string().starts_with("erofs-")) devices.insert(it->path());
  }
  return devices;
}

// Sets devices that were not there before this mount; one of another mount made
// in between is set twice, to the same value.
void RaiseReadAhead(const std::set<fs::path>& before) {
  for (const fs::path& device : ErofsDevices()) {
    if (before.contains(device)) continue;
    const absl::StatusOr<UniqueFd> fd = OpenFile(device / "read_ahead_kb", O_WRONLY);
    const absl::Status status =
        fd.ok() ? WriteAll(fd->get(), AsBytes(std::to_string(kReadAheadKb))) : fd.status();
    if (!status.ok()) log::warn("read-ahead of {}: {}", device.string(), Describe(status));
  }
}

std::string DescriptorPath(const UniqueFd& fd) { return fmt::format("/proc/self/fd/{}", fd.get()); }

// The view itself, whatever its server answers when the name is looked up again.
absl::StatusOr<UniqueFd> OpenView(const fs::path& view) {
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFile(view.parent_path(), O_PATH | O_DIRECTORY));
  UniqueFd file(openat(folder.get(), view.filename().c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  struct stat above, st;
  if (!file.valid() || fstat(folder.get(), &above) != 0 || fstat(file.get(), &st) != 0)
    return ErrnoStatus(errno, view.string());
  if (!S_ISREG(st.st_mode) || st.st_dev != above.st_dev)
    return PermissionDenied("{} is not a regular file of its file system", view.string());
  return file;
}

// 0 or an error number.
int MountFile(const UniqueFd& view, const fs::path& target) {
  const std::set<fs::path> before = ErofsDevices();
  if (mount(DescriptorPath(view).c_str(), target.c_str(), "erofs", kMountFlags, "directio") != 0)
    return errno;
  RaiseReadAhead(before);
  return 0;
}

// No EROFS of files, or one without "directio"; EINVAL is also that of a bad view.
bool MayBeLackOfSupport(int error) {
  return error == ENODEV || error == ENOTBLK || error == EINVAL;
}

absl::Status FileError(int error, const fs::path& view) {
  const std::string what = fmt::format("mount {} as EROFS", view.string());
  if (error == ENODEV || error == ENOTBLK)
    return FailedPrecondition("{}: this kernel has no file-backed EROFS (Linux 6.13 or later)",
                              what);
  return ErrnoStatus(error, what);
}

absl::Status MountLoop(const UniqueFd& view, const fs::path& name, const fs::path& target) {
  const std::string what = fmt::format("mount {} as EROFS by loop device", name.string());
  // Opens what was judged, not what the name leads to now.
  ASSIGN_OR_RETURN(const UniqueFd file, OpenFile(DescriptorPath(view), O_RDONLY));
  const absl::StatusOr<LoopDevice> loop =
      LoopDevice::Attach(file.get(), name.parent_path().string());
  if (!loop.ok()) return Annotate(loop.status(), what);
  if (mount(loop->path().c_str(), target.c_str(), "erofs", kMountFlags, nullptr) == 0)
    return absl::OkStatus();
  if (errno == ENODEV)
    return FailedPrecondition("{}: this kernel has no EROFS: load the module (modprobe erofs)",
                              what);
  return ErrnoStatus(errno, what);
}

}  // namespace

absl::StatusOr<ViewMount> ParseViewMount(const std::string& word) {
  if (word == "auto") return ViewMount::kAuto;
  if (word == "file") return ViewMount::kFile;
  if (word == "loop") return ViewMount::kLoop;
  return InvalidArgument("view_mount is \"{}\", not auto, file or loop", word);
}

absl::Status ErofsMounter::Mount(const fs::path& view, const fs::path& target) {
  const ViewMount way = way_;
  ASSIGN_OR_RETURN(const UniqueFd file, OpenView(view));
  std::string reason = "as configured";
  if (way != ViewMount::kLoop) {
    const int error = MountFile(file, target);
    if (error == 0) {
      Settle(ViewMount::kFile, "this kernel has file-backed EROFS");
      return absl::OkStatus();
    }
    if (way == ViewMount::kFile || !MayBeLackOfSupport(error)) return FileError(error, view);
    reason = Message(ErrnoStatus(error, "file-backed EROFS with direct I/O (Linux 6.13)"));
  }
  const absl::Status mounted = MountLoop(file, view, target);
  if (!mounted.ok()) return way == ViewMount::kAuto ? Annotate(mounted, reason) : mounted;
  Settle(ViewMount::kLoop, reason);
  return absl::OkStatus();
}

void ErofsMounter::Settle(ViewMount way, const std::string& reason) {
  ViewMount unsettled = ViewMount::kAuto;
  if (!way_.compare_exchange_strong(unsettled, way)) return;
  log::info("views are mounted {}: {}",
            way == ViewMount::kFile ? "by file" : "through loop devices", reason);
}

absl::Status UnmountErofs(const fs::path& target) {
  if (umount2(target.c_str(), UMOUNT_NOFOLLOW) == 0) return absl::OkStatus();
  if (errno == EBUSY && umount2(target.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) == 0)
    return absl::OkStatus();
  if (errno == EINVAL || errno == ENOENT) return absl::OkStatus();  // not mounted
  return ErrnoStatus(errno, "unmount " + target.string());
}

bool IsErofsMount(const fs::path& target) {
  std::error_code error;
  const fs::path real = fs::canonical(target.parent_path(), error) / target.filename();
  const absl::StatusOr<std::vector<MountInfo>> mounts = ReadMountInfo();
  if (error || !mounts.ok()) return false;
  std::string type;  // of the last one there
  for (const MountInfo& mount : *mounts) {
    if (mount.point == real.native()) type = mount.type;
  }
  return type == "erofs";
}

absl::StatusOr<std::vector<std::string>> ErofsMountsBelow(const fs::path& dir) {
  std::error_code error;
  const fs::path real = fs::canonical(dir, error);
  if (error) return ErrnoStatus(error.value(), dir.string());
  ASSIGN_OR_RETURN(const std::vector<MountInfo> mounts, ReadMountInfo());
  std::vector<std::string> points;
  for (const MountInfo& mount : mounts) {
    if (mount.type == "erofs" && mount.point.starts_with(real.string() + "/"))
      points.push_back(mount.point);
  }
  return points;
}

absl::Status DetachErofsBelow(const fs::path& dir) {
  ASSIGN_OR_RETURN(const std::vector<std::string> points, ErofsMountsBelow(dir));
  for (auto point = points.rbegin(); point != points.rend(); ++point) {
    if (umount2(point->c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) != 0)
      return ErrnoStatus(errno, "detach " + *point);
    log::info("detached {}, left by an earlier run", *point);
  }
  return absl::OkStatus();
}

absl::Status DetachLoopsOfViews(const fs::path& views) { return DetachLoopDevices(views.string()); }

}  // namespace kapsule
