// Becoming a user without any rights.
#pragma once

#include <sys/types.h>

#include "core/base/status.h"

namespace kapsule::daemon {

// Turns a root process into one of `uid` and `gid` for good: no supplementary
// groups, no capability in any set, no_new_privs, no core dumps, not traceable
// by its own user. Call while there is one thread; checks that the way back is
// closed. After an error the process must end.
//   InvalidArgument     uid or gid is 0
//   PermissionDenied    not started as root
//   FailedPrecondition  a way back is open
absl::Status GiveUpRights(uid_t uid, gid_t gid);

}  // namespace kapsule::daemon
