#include "snapshotter/fuse_mount.h"

#include <absl/strings/numbers.h>
#include <fcntl.h>
#include <sys/mount.h>

#include <cerrno>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/mounts/mountinfo.h"

namespace kapsule::snapshotter {
namespace {

// Small requests of many readers must not wait for each other.
constexpr int kMaxBackground = 4096;
// What the kernel asks for at once: two requests of the largest size.
constexpr int kReadAheadKiB = 2048;

// "major:minor" of each FUSE mount at `path`, the topmost last.
absl::StatusOr<std::vector<std::string>> FuseDevicesAt(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const std::vector<MountInfo> mounts, ReadMountInfo());
  std::vector<std::string> found;
  for (const MountInfo& mount : mounts)
    if (mount.type.starts_with("fuse") && mount.point == path.native())
      found.push_back(mount.device);
  return found;
}

void WriteNumber(const std::string& path, int number) {
  const std::string text = std::to_string(number);
  absl::Status status;
  const auto fd = OpenFile(path, O_WRONLY);
  status = fd.ok() ? Annotate(WriteAll(fd->get(), AsBytes(text)), path) : fd.status();
  if (!status.ok()) log::debug("FUSE setting stays as it is: {}", Describe(status));
}

// Of the mount with this device.
std::string ControlFolder(const std::string& device) {
  return "/sys/fs/fuse/connections/" + device.substr(device.find(':') + 1);
}

constexpr uint64_t kMaxNumberBytes = 32;

}  // namespace

absl::Status DetachFuseMounts(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const std::vector<std::string> devices, FuseDevicesAt(path));
  for (size_t i = 0; i < devices.size(); ++i)
    if (umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0)
      return ErrnoStatus(errno, "detach " + path.string());
  return absl::OkStatus();
}

absl::StatusOr<FuseMount> FuseMount::Make(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(UniqueFd device, OpenFile("/dev/fuse", O_RDWR));
  const std::string options = fmt::format("fd={},rootmode=40000,user_id=0,group_id=0,max_read={}",
                                          device.get(), 1024 * 1024);
  if (mount("kapsule", path.c_str(), "fuse.kapsule", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY,
            options.c_str()) != 0)
    return ErrnoStatus(errno, "mount FUSE at " + path.string());
  return FuseMount(path, std::move(device));
}

absl::StatusOr<FuseMount> FuseMount::Adopt(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const std::vector<std::string> devices, FuseDevicesAt(path));
  if (devices.size() != 1)
    return NotFound("{} FUSE mounts at {} instead of one", devices.size(), path.string());
  return FuseMount(path, UniqueFd());
}

FuseMount::~FuseMount() {
  if (path_.empty()) return;
  // Ends the connection, whoever has its device: EBUSY then says that EROFS is on it.
  umount2(path_.c_str(), UMOUNT_NOFOLLOW | MNT_FORCE);
  if (umount2(path_.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0 && errno != EINVAL)
    log::warn("{}", Describe(ErrnoStatus(errno, "detach " + path_.string())));
}

void FuseMount::Tune() const {
  const absl::StatusOr<std::vector<std::string>> devices = FuseDevicesAt(path_);
  if (!devices.ok() || devices->empty()) return;
  const std::string& device = devices->back();
  WriteNumber("/sys/class/bdi/" + device + "/read_ahead_kb", kReadAheadKiB);
  const std::string connection = ControlFolder(device);
  WriteNumber(connection + "/max_background", kMaxBackground);
  WriteNumber(connection + "/congestion_threshold", kMaxBackground / 4 * 3);
}

absl::StatusOr<int> FuseMount::Unanswered() const {
  ASSIGN_OR_RETURN(const std::vector<std::string> devices, FuseDevicesAt(path_));
  if (devices.empty()) return NotFound("no FUSE mount at {}", path_.string());
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(ControlFolder(devices.back()) + "/waiting", kMaxNumberBytes));
  int number = 0;
  if (!absl::SimpleAtoi(text, &number)) return Internal("\"{}\" requests wait", text);
  return number;
}

}  // namespace kapsule::snapshotter
