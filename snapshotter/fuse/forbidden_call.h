// What happens when a system call is made that the filter forbids.
#pragma once

#include "core/base/status.h"

namespace kapsule::fuse {

// From now on a call that a filter traps (SIGSYS) fails with EPERM, and the first
// one of each number writes one line in the format of the log (core/base/log.h)
// with its name. Not the end of the process: a library that tries something new
// on another system must not take every mount of the node with it. The handler is
// async-signal-safe. Call before the filter is installed.
absl::Status ReportForbiddenCalls();

}  // namespace kapsule::fuse
