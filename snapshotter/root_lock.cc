#include "snapshotter/root_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

namespace kapsule::snapshotter {

absl::StatusOr<RootLock> RootLock::Take(const std::filesystem::path& root) {
  RETURN_IF_ERROR(MakeDirs(root, 0700));
  const std::filesystem::path path = root / "lock";
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(path, O_RDWR | O_CREAT, 0600));
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "lock " + path.string());
    char pid[32] = {};
    if (pread(fd.get(), pid, sizeof(pid) - 1, 0) <= 0) pid[0] = '?';
    return AlreadyExists(
        "{} is in use by process {}: give each kapsule-snapshotter a --root of its own",
        root.string(), pid);
  }
  const std::string pid = std::to_string(getpid());
  if (ftruncate(fd.get(), 0) != 0) return ErrnoStatus(errno, path.string());
  RETURN_IF_ERROR(WriteAll(fd.get(), AsBytes(pid)));
  return RootLock(std::move(fd));
}

}  // namespace kapsule::snapshotter
