#include "snapshotter/erofs_mount.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <cerrno>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/base/log.h"

namespace kapsule::snapshotter {
namespace fs = std::filesystem;
namespace {

constexpr char kBdiFolder[] = "/sys/class/bdi";

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

// Mount points in mountinfo have blanks and backslashes as \ooo.
std::string Unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain += static_cast<char>((text[i + 1] - '0') << 6 | (text[i + 2] - '0') << 3 |
                                 (text[i + 3] - '0'));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

// The mount point of a line of mountinfo where its type is erofs; else empty.
std::string ErofsMountPoint(const std::string& line) {
  std::istringstream words(line);
  std::string skip, point, word;
  words >> skip >> skip >> skip >> skip >> point;
  while (words >> word && word != "-") {
  }
  std::string type;
  words >> type;
  return type == "erofs" ? Unescape(point) : "";
}

}  // namespace

absl::Status MountErofs(const fs::path& view, const fs::path& target) {
  ASSIGN_OR_RETURN(const UniqueFd file, OpenView(view));
  const std::string source = fmt::format("/proc/self/fd/{}", file.get());
  const std::set<fs::path> before = ErofsDevices();
  if (mount(source.c_str(), target.c_str(), "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV,
            "directio") != 0) {
    const int error = errno;
    const std::string what = fmt::format("mount {} as EROFS", view.string());
    if (error == ENODEV || error == ENOTBLK)
      return FailedPrecondition("{}: this kernel has no file-backed EROFS (Linux 6.13 or later)",
                                what);
    return ErrnoStatus(error, what);
  }
  RaiseReadAhead(before);
  return absl::OkStatus();
}

absl::Status UnmountErofs(const fs::path& target) {
  if (umount2(target.c_str(), UMOUNT_NOFOLLOW) == 0) return absl::OkStatus();
  if (errno == EBUSY && umount2(target.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) == 0)
    return absl::OkStatus();
  if (errno == EINVAL || errno == ENOENT) return absl::OkStatus();  // not mounted
  return ErrnoStatus(errno, "unmount " + target.string());
}

absl::Status DetachErofsBelow(const fs::path& dir) {
  std::error_code error;
  const fs::path real = fs::canonical(dir, error);
  if (error) return ErrnoStatus(error.value(), dir.string());
  std::ifstream mounts("/proc/self/mountinfo");
  if (!mounts) return Internal("/proc/self/mountinfo cannot be read");
  std::vector<std::string> points;
  for (std::string line; std::getline(mounts, line);) {
    std::string point = ErofsMountPoint(line);
    if (point.starts_with(real.string() + "/")) points.push_back(std::move(point));
  }
  for (auto point = points.rbegin(); point != points.rend(); ++point) {
    if (umount2(point->c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) != 0)
      return ErrnoStatus(errno, "detach " + *point);
    log::info("detached {}, left by an earlier run", *point);
  }
  return absl::OkStatus();
}

}  // namespace kapsule::snapshotter
