// One process at a time works in a root.
#pragma once

#include <filesystem>

#include "core/base/file.h"

namespace kapsule::snapshotter {

// Holds <root>/lock; makes root (0700) where it is missing. The kernel lets go
// of it when the process ends, however it ends.
class RootLock {
 public:
  //   AlreadyExists  another process holds it: names it
  static absl::StatusOr<RootLock> Take(const std::filesystem::path& root);

 private:
  explicit RootLock(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace kapsule::snapshotter
