#include "snapshotter/fuse_mount.h"

#include <fcntl.h>
#include <sys/mount.h>

#include <cerrno>
#include <fstream>
#include <optional>
#include <sstream>

#include "core/base/log.h"

namespace kapsule::snapshotter {
namespace {

// Small requests of many readers must not wait for each other.
constexpr int kMaxBackground = 4096;
// What the kernel asks for at once: two requests of the largest size.
constexpr int kReadAheadKiB = 2048;

// mountinfo writes space, tab, line feed and backslash as \ooo.
std::string Unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                      (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

// "major:minor" of the last FUSE mount at `path` (proc_pid_mountinfo(5)).
std::optional<std::string> FuseDeviceAt(const std::filesystem::path& path) {
  std::ifstream mountinfo("/proc/self/mountinfo");
  std::optional<std::string> found;
  for (std::string line; std::getline(mountinfo, line);) {
    std::istringstream words(line);
    std::string id, parent, device, root, point, word, type;
    words >> id >> parent >> device >> root >> point;
    while (words >> word && word != "-") {
    }
    words >> type;
    if (type.rfind("fuse", 0) == 0 && Unescape(point) == path.native()) found = device;
  }
  return found;
}

void WriteNumber(const std::string& path, int number) {
  const std::string text = std::to_string(number);
  absl::Status status;
  const auto fd = OpenFile(path, O_WRONLY);
  status = fd.ok() ? Annotate(WriteAll(fd->get(), AsBytes(text)), path) : fd.status();
  if (!status.ok()) log::debug("FUSE setting stays as it is: {}", Describe(status));
}

}  // namespace

absl::Status DetachFuseMounts(const std::filesystem::path& path) {
  while (FuseDeviceAt(path)) {
    if (umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0)
      return ErrnoStatus(errno, "detach " + path.string());
  }
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

FuseMount::~FuseMount() {
  if (path_.empty()) return;
  if (umount2(path_.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0 && errno != EINVAL)
    log::warn("{}", Describe(ErrnoStatus(errno, "detach " + path_.string())));
}

void FuseMount::Tune() const {
  const std::optional<std::string> device = FuseDeviceAt(path_);
  if (!device) return;
  WriteNumber("/sys/class/bdi/" + *device + "/read_ahead_kb", kReadAheadKiB);
  const std::string connection =
      "/sys/fs/fuse/connections/" + device->substr(device->find(':') + 1);
  WriteNumber(connection + "/max_background", kMaxBackground);
  WriteNumber(connection + "/congestion_threshold", kMaxBackground / 4 * 3);
}

}  // namespace kapsule::snapshotter
