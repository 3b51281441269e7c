#include "snapshotter/fuse/confine.h"

#include <sched.h>
#include <unistd.h>

#include <cerrno>

#include "core/daemon/rights.h"
#include "snapshotter/fuse/private_root.h"
#include "snapshotter/fuse/seccomp.h"

namespace kapsule::fuse {

absl::Status Confine(const ConfineOptions& options) {
  if (options.uid == 0 || options.gid == 0)
    return InvalidArgument("kapsule-fuse runs as a user of its own, not as {}:{}", options.uid,
                           options.gid);
  if (geteuid() != 0) return PermissionDenied("start kapsule-fuse as root: it drops that itself");
  RETURN_IF_ERROR(ReadFilesOfLibraries());
  if (unshare(CLONE_NEWNET) != 0) return ErrnoStatus(errno, "leave the network namespace");
  RETURN_IF_ERROR(EnterPrivateRoot(options.keyprovider_socket.parent_path()));
  return daemon::GiveUpRights(options.uid, options.gid);
}

}  // namespace kapsule::fuse
