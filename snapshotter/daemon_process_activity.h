// What a process is doing, as far as /proc tells.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "core/base/status.h"

namespace kapsule::snapshotter {

struct ProcessActivity {
  struct Threads {
    bool working = false;  // one of them runs, could run or waits for a disk
    uint64_t ticks = 0;    // of processor time that they have used
    // Whether nothing was done between `before` and this.
    bool StillSince(const Threads& before) const { return !working && ticks == before.ticks; }
  };
  Threads main, all;    // the first thread; all that live
  bool traced = false;  // a debugger has it
};

//   NotFound, others  there is no such process, or /proc does not tell
absl::StatusOr<ProcessActivity> ActivityOf(pid_t pid);

}  // namespace kapsule::snapshotter
