// What the kernel says about a process.
#pragma once

#include <sys/types.h>

#include "core/base/status.h"

namespace kapsule::snapshotter {

struct ProcessFacts {
  double cpu_seconds = 0;
  double resident_bytes = 0;
  double start_seconds = 0;  // since the epoch
  double threads = 0;
  double open_files = 0;
};

// NotFound: no such process.
absl::StatusOr<ProcessFacts> FactsOf(pid_t pid);

}  // namespace kapsule::snapshotter
