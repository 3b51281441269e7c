#include "snapshotter/fuse/private_root.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/file.h"

namespace kapsule::fuse {
namespace {

namespace fs = std::filesystem;

constexpr unsigned long kBare = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;

absl::Status Check(long result, const std::string& what) {
  return result == 0 ? absl::OkStatus() : ErrnoStatus(errno, what);
}

absl::Status CheckPath(const fs::path& folder) {
  if (!folder.is_absolute() || folder.lexically_normal() != folder || !folder.has_filename())
    return InvalidArgument(
        "the keyprovider's socket needs a folder of its own, given as an absolute path without "
        "\".\" and \"..\"; \"{}\" is none",
        folder.string());
  return absl::OkStatus();
}

// A mount of the folder that is not attached anywhere yet.
absl::StatusOr<UniqueFd> CloneMount(const fs::path& folder) {
  UniqueFd tree(static_cast<int>(
      syscall(SYS_open_tree, AT_FDCWD, folder.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
  if (tree.valid()) {
    struct stat st;
    if (fstat(tree.get(), &st) != 0) return ErrnoStatus(errno, folder.string());
    if (!S_ISDIR(st.st_mode)) return ErrnoStatus(ENOTDIR, folder.string());
    return tree;
  }
  if (errno != ENOENT) return ErrnoStatus(errno, "open_tree " + folder.string());
  return NotFound(
      "{}, the folder of the keyprovider's socket, is not there: let it be made before "
      "kapsule-fuse starts (tmpfiles.d, or RuntimeDirectory= with RuntimeDirectoryPreserve=yes)",
      folder.string());
}

// The folder in an empty tmpfs that lies, in this namespace alone, on the one
// place that is known to be there: the folder itself.
absl::Status BuildRoot(const fs::path& folder, const UniqueFd& tree) {
  RETURN_IF_ERROR(
      Check(mount("tmpfs", folder.c_str(), "tmpfs", kBare & ~MS_RDONLY, "size=64k,mode=755"),
            "mount a tmpfs as root"));
  const fs::path place = folder / folder.relative_path();
  RETURN_IF_ERROR(MakeDirs(place, 0755));
  RETURN_IF_ERROR(Check(
      syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, place.c_str(), MOVE_MOUNT_F_EMPTY_PATH),
      "show " + folder.string()));
  RETURN_IF_ERROR(
      Check(mount(nullptr, place.c_str(), nullptr, MS_REMOUNT | MS_BIND | kBare, nullptr),
            "show it read-only"));
  return Check(mount(nullptr, folder.c_str(), nullptr, MS_REMOUNT | kBare, nullptr),
               "make the root read-only");
}

// The old root ends up on the new one, and is taken off.
absl::Status SwitchRoot(const fs::path& root) {
  RETURN_IF_ERROR(Check(chdir(root.c_str()), "enter the new root"));
  RETURN_IF_ERROR(Check(syscall(SYS_pivot_root, ".", "."), "pivot_root"));
  RETURN_IF_ERROR(Check(umount2(".", MNT_DETACH), "leave the old root"));
  return Check(chdir("/"), "enter the root");
}

}  // namespace

absl::Status EnterPrivateRoot(const fs::path& folder) {
  RETURN_IF_ERROR(CheckPath(folder));
  RETURN_IF_ERROR(Check(unshare(CLONE_NEWNS), "leave the mount namespace"));
  RETURN_IF_ERROR(Check(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr),
                        "make the mount namespace private"));
  ASSIGN_OR_RETURN(const UniqueFd tree, CloneMount(folder));
  RETURN_IF_ERROR(BuildRoot(folder, tree));
  return SwitchRoot(folder);
}

}  // namespace kapsule::fuse
