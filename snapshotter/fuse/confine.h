// Giving up everything that kapsule-fuse does not need.
#pragma once

#include <sys/types.h>

#include <filesystem>

#include "core/base/status.h"

namespace kapsule::fuse {

struct ConfineOptions {
  uid_t uid = 0;
  gid_t gid = 0;
  std::filesystem::path keyprovider_socket;  // its folder stays in sight
};

// Turns a root process into one of `uid` and `gid` for good: no core dumps, not
// traceable by its own user, an empty network namespace, a file system of its
// own with the socket's folder alone (private_root.h), no supplementary groups,
// no capability in any set, no_new_privs. Call while there is one thread; checks
// that the way back is closed. After an error the process must end.
//   InvalidArgument     uid or gid is 0; the socket's path
//   NotFound            the socket's folder
//   PermissionDenied    not started as root
//   FailedPrecondition  a way back is open
absl::Status Confine(const ConfineOptions& options);

}  // namespace kapsule::fuse
