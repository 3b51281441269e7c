// Snapshots in containerd's words: a key names an active snapshot or a view, a
// name a committed one, and both share one space.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace kapsule::snapshotter {

using Labels = std::map<std::string, std::string>;

// The numbers of containerd's API.
enum class Kind { kView = 1, kActive = 2, kCommitted = 3 };

struct Info {
  std::string name;    // key of an active snapshot or a view
  std::string parent;  // empty at the bottom
  Kind kind = Kind::kActive;
  int64_t created_ns = 0;  // since the epoch
  int64_t updated_ns = 0;
  Labels labels;
};

// Without the parents.
struct Usage {
  uint64_t size = 0;  // bytes on disk
  uint64_t inodes = 0;
  bool operator==(const Usage&) const = default;
};

struct Mount {
  std::string type;
  std::string source;
  std::vector<std::string> options;
};

}  // namespace kapsule::snapshotter
