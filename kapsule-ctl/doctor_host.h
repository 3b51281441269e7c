// Judging what the kernel says about itself; apart from reading it, for tests.
#pragma once

#include <cstdint>
#include <string>

#include "kapsule-ctl/doctor.h"

namespace kapsule::ctl {

// `release` as uname(2) has it: "6.1.0-56-amd64".
Finding JudgeKernel(const std::string& release);
// `value` of the sysctl fs.fuse.NAME; empty where the kernel has none.
Finding JudgeRequestTimeout(const std::string& name, const std::string& value);
// The text of /proc/swaps.
Finding JudgeSwaps(const std::string& swaps);
// The texts of /sys/power/resume and /sys/kernel/kexec_crash_loaded.
Finding JudgeHibernation(const std::string& resume);
Finding JudgeCrashDumps(const std::string& loaded);
Finding JudgeLockLimit(uint64_t bytes, bool unlimited);

}  // namespace kapsule::ctl
