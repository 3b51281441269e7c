#include "core/daemon/rights.h"

#include <grp.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "core/daemon/hardening.h"

namespace kapsule::daemon {
namespace {

absl::Status Check(int result, const char* what) {
  return result == 0 ? absl::OkStatus() : ErrnoStatus(errno, what);
}

// Needs CAP_SETPCAP, so it comes before the change of user.
absl::Status EmptyBoundingSet() {
  for (int capability = 0; capability < 64; ++capability) {
    if (prctl(PR_CAPBSET_READ, capability) < 0) break;  // EINVAL: beyond the last one
    RETURN_IF_ERROR(Check(prctl(PR_CAPBSET_DROP, capability), "PR_CAPBSET_DROP"));
  }
  return absl::OkStatus();
}

absl::Status BecomeUser(uid_t uid, gid_t gid) {
  RETURN_IF_ERROR(Check(setgroups(0, nullptr), "setgroups"));
  RETURN_IF_ERROR(Check(setresgid(gid, gid, gid), "setresgid"));
  return Check(setresuid(uid, uid, uid), "setresuid");
}

absl::Status DropCapabilities() {
  RETURN_IF_ERROR(
      Check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "PR_CAP_AMBIENT"));
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  RETURN_IF_ERROR(Check(static_cast<int>(syscall(SYS_capset, &header, none)), "capset"));
  return Check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
}

absl::Status CheckNoWayBack() {
  if (setresuid(0, 0, 0) == 0 || setuid(0) == 0 || seteuid(0) == 0 || setresgid(0, 0, 0) == 0)
    return FailedPrecondition("the process can become root again");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct left[_LINUX_CAPABILITY_U32S_3] = {};
  RETURN_IF_ERROR(Check(static_cast<int>(syscall(SYS_capget, &header, left)), "capget"));
  for (const __user_cap_data_struct& set : left)
    if ((set.effective | set.permitted | set.inheritable) != 0)
      return FailedPrecondition("the process still has capabilities");
  return absl::OkStatus();
}

}  // namespace

absl::Status GiveUpRights(uid_t uid, gid_t gid) {
  if (uid == 0 || gid == 0)
    return InvalidArgument("give this program a user of its own, not {}:{}", uid, gid);
  if (geteuid() != 0)
    return PermissionDenied("start this program as root: it gives that up itself");
  RETURN_IF_ERROR(EmptyBoundingSet());
  RETURN_IF_ERROR(BecomeUser(uid, gid));
  RETURN_IF_ERROR(DropCapabilities());
  // After the change of user, which sets the dumpable flag from a sysctl.
  RETURN_IF_ERROR(ForbidDumps());
  return CheckNoWayBack();
}

}  // namespace kapsule::daemon
