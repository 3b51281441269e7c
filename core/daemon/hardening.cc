#include "core/daemon/hardening.h"

#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace kapsule::daemon {
namespace {

bool HasLockCapability() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
  return syscall(SYS_capget, &header, data) == 0 &&
         (data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK)) != 0;
}

}  // namespace

absl::Status ForbidDumps() {
  if (prctl(PR_SET_DUMPABLE, 0) != 0) return ErrnoStatus(errno, "PR_SET_DUMPABLE");
  const rlimit none{0, 0};
  if (setrlimit(RLIMIT_CORE, &none) != 0) return ErrnoStatus(errno, "RLIMIT_CORE");
  return absl::OkStatus();
}

absl::Status LockMemory() {
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  if (limit.rlim_cur != RLIM_INFINITY && !HasLockCapability())
    return FailedPrecondition(
        "memory is not locked: give the service LimitMEMLOCK=infinity or CAP_IPC_LOCK");
  if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0) return ErrnoStatus(errno, "mlockall");
  return absl::OkStatus();
}

}  // namespace kapsule::daemon
