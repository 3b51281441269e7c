// What a directory tree takes on disk.
#pragma once

#include <filesystem>
#include <map>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include "core/base/status.h"
#include "snapshotter/snapshot.h"

namespace kapsule::snapshotter {

// Inodes and their blocks, hard links once, without other file systems that are
// mounted inside. Files that come and go meanwhile are no error.
absl::StatusOr<Usage> DiskUsage(const std::filesystem::path& tree);

// DiskUsage() for those who ask every few seconds: a measure is given again
// until twenty times the time that it took has passed, so that asking never
// costs more than a twentieth of a core a snapshot. Thread-safe.
class UsageMeter {
 public:
  absl::StatusOr<Usage> Measure(int64_t id, const std::filesystem::path& tree);
  void Forget(int64_t id);

 private:
  struct Measured {
    Usage usage;
    absl::Time good_until;
  };
  absl::Mutex mu_;  // map access only
  std::map<int64_t, Measured> measured_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::snapshotter
