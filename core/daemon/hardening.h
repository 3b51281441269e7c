// Keeping what a process knows out of core dumps, debuggers and swap.
#pragma once

#include "core/base/status.h"

namespace kapsule::daemon {

// No core dumps, and no ptrace or /proc/PID/mem by others of the same uid. Call
// first in main().
absl::Status ForbidDumps();

// Locks all present and future memory as it is touched. FailedPrecondition,
// with nothing changed, where RLIMIT_MEMLOCK is finite and CAP_IPC_LOCK is
// missing: a lock that runs out would make later allocations fail. Secrets
// (core/base/secret.h) lock their own pages in any case.
absl::Status LockMemory();

}  // namespace kapsule::daemon
