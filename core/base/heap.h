// What the C library's heap does with memory that is free: by itself it keeps most
// of it, in eight arenas for each processor.
#pragma once

#include <cstddef>

namespace kapsule {

// For daemons, before there are threads: threads share two arenas, and pieces from
// kMappedBytes on go back to the system when they are freed. Those cost a system call
// and page faults each, so what is needed often is kept by its user.
inline constexpr size_t kMappedBytes = 128 << 10;
void KeepHeapSmall();

// Gives what is free inside of the heap back after bursts. Not thread-safe.
class HeapTrimmer {
 public:
  // To be called now and then: does nothing where the process has not grown by kGrowth
  // since the last time; else locks the arenas for up to some milliseconds.
  void Trim();
  static constexpr size_t kGrowth = 1 << 20;

 private:
  size_t least_ = 0;  // bytes that were resident, after the last time or later
};

}  // namespace kapsule
