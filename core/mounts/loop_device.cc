#include "core/mounts/loop_device.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "core/base/log.h"

namespace kapsule {
namespace fs = std::filesystem;
namespace {

constexpr char kControl[] = "/dev/loop-control";
// Others may take the device that was free a moment ago.
constexpr int kTries = 100;
constexpr size_t kMaxMark = LO_NAME_SIZE - 1;

std::string DevicePath(int number) { return fmt::format("/dev/loop{}", number); }
fs::path SysPath(const std::string& device) {
  return fs::path("/sys/block") / fs::path(device).filename();
}

std::string MarkOf(const std::string& mark) {
  return mark.size() <= kMaxMark ? mark : mark.substr(mark.size() - kMaxMark);
}

absl::StatusOr<UniqueFd> OpenControl() {
  absl::StatusOr<UniqueFd> control = OpenFile(kControl, O_RDWR);
  if (control.ok() || absl::IsPermissionDenied(control.status())) return control;
  return FailedPrecondition(
      "there are no loop devices ({}): load the module (modprobe loop); in a container, give it"
      " the host's /dev",
      Message(control.status()));
}

absl::StatusOr<int> FreeDevice(const UniqueFd& control) {
  const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
  if (number < 0) return ErrnoStatus(errno, "get a free loop device");
  return number;
}

// Not valid where another has just taken the device or removes it.
absl::StatusOr<UniqueFd> OpenDevice(int number) {
  const std::string path = DevicePath(number);
  UniqueFd device(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (device.valid() || errno == ENXIO || errno == EBUSY) return device;
  if (errno == ENOENT)
    return FailedPrecondition(
        "{0} is missing though the kernel has this device: mknod -m 0600 {0} b 7 {1}; in a"
        " container, give it the host's /dev",
        path, number);
  return ErrnoStatus(errno, path);
}

// False where another was faster.
absl::StatusOr<bool> Configure(const UniqueFd& device, int file, const std::string& mark) {
  loop_config config = {};
  config.fd = static_cast<uint32_t>(file);
  config.info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_DIRECT_IO | LO_FLAGS_AUTOCLEAR;
  std::memcpy(config.info.lo_file_name, mark.data(), mark.size());
  if (ioctl(device.get(), LOOP_CONFIGURE, &config) == 0) return true;
  if (errno == EBUSY || errno == ENXIO) return false;
  return ErrnoStatus(errno, "attach a file to a loop device (Linux 5.8 or later)");
}

void SetQueue(const std::string& path, const char* name, int value) {
  const fs::path file = SysPath(path) / "queue" / name;
  const absl::StatusOr<UniqueFd> fd = OpenFile(file, O_WRONLY);
  const absl::Status status =
      fd.ok() ? WriteAll(fd->get(), AsBytes(std::to_string(value))) : fd.status();
  if (!status.ok()) log::warn("{}: {}", file.string(), Describe(status));
}

// Without direct I/O everything is cached twice, and a warm read may never ask the
// file again.
absl::Status CheckDirect(const std::string& path) {
  std::ifstream file(SysPath(path) / "loop/dio");
  int direct = 0;
  file >> direct;
  if (direct == 1) return absl::OkStatus();
  return FailedPrecondition(
      "{} does no direct I/O on its file: this kernel's loop driver or the file system below"
      " lacks it",
      path);
}

std::optional<std::string> ReadMark(const UniqueFd& device) {
  loop_info64 info = {};
  if (ioctl(device.get(), LOOP_GET_STATUS64, &info) != 0) return std::nullopt;  // a free one
  const char* name = reinterpret_cast<const char*>(info.lo_file_name);
  return std::string(name, strnlen(name, kMaxMark));
}

}  // namespace

absl::StatusOr<LoopDevice> LoopDevice::Attach(int file, const std::string& mark) {
  ASSIGN_OR_RETURN(const UniqueFd control, OpenControl());
  for (int i = 0; i < kTries; ++i) {
    ASSIGN_OR_RETURN(const int number, FreeDevice(control));
    ASSIGN_OR_RETURN(UniqueFd device, OpenDevice(number));
    if (!device.valid()) continue;
    ASSIGN_OR_RETURN(const bool attached, Configure(device, file, MarkOf(mark)));
    if (!attached) continue;
    LoopDevice loop(DevicePath(number), std::move(device));
    RETURN_IF_ERROR(CheckDirect(loop.path()));
    SetQueue(loop.path(), "read_ahead_kb", kReadAheadKb);
    SetQueue(loop.path(), "max_sectors_kb", kMaxSectorsKb);
    return loop;
  }
  return Unavailable("no loop device: others took {} free ones first", kTries);
}

absl::Status DetachLoopDevices(const std::string& mark) {
  std::error_code error;
  for (fs::directory_iterator it("/sys/block", error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename();
    // Free devices have no folder "loop"; opening one for nothing may keep it busy.
    std::error_code ignored;
    if (!name.starts_with("loop") || !fs::exists(it->path() / "loop", ignored)) continue;
    const absl::StatusOr<UniqueFd> device = OpenFile("/dev/" + name, O_RDONLY);
    if (!device.ok() || ReadMark(*device) != MarkOf(mark)) continue;
    if (ioctl(device->get(), LOOP_CLR_FD) != 0 && errno != ENXIO)
      return ErrnoStatus(errno, "detach /dev/" + name);
    if (!ReadMark(*device)) log::info("detached /dev/{}, left by an earlier run", name);
  }
  return absl::OkStatus();
}

}  // namespace kapsule
