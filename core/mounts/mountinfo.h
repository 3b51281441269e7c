// What is mounted in this process's namespace.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/base/status.h"

namespace kapsule {

struct MountInfo {
  std::string device;  // "major:minor"
  std::string point;   // absolute
  std::string type;    // "erofs", "fuse.kapsule"
};

// The lines of /proc/self/mountinfo, in its order: what is mounted over another
// mount comes after it. Touches none of the file systems, so dead ones do no harm.
absl::StatusOr<std::vector<MountInfo>> ReadMountInfo();

// One line (proc_pid_mountinfo(5)); nullopt where it is none.
std::optional<MountInfo> ParseMountInfo(const std::string& line);

}  // namespace kapsule
