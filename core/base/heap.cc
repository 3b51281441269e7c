#include "core/base/heap.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>

namespace kapsule {
namespace {

constexpr int kArenas = 2;

// 0 where it cannot be known.
size_t ResidentBytes() {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen("/proc/self/statm", "re"),
                                                   std::fclose);
  size_t all = 0, resident = 0;
  if (file == nullptr || std::fscanf(file.get(), "%zu %zu", &all, &resident) != 2) return 0;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

void KeepHeapSmall() {
  mallopt(M_ARENA_MAX, kArenas);
  // Either would grow with what is freed if it were not set.
  mallopt(M_MMAP_THRESHOLD, kMappedBytes);
  mallopt(M_TRIM_THRESHOLD, kMappedBytes);
}

void HeapTrimmer::Trim() {
  const size_t now = ResidentBytes();
  if (now < least_ + kGrowth) {
    least_ = std::min(least_, now);
    return;
  }
  malloc_trim(0);
  least_ = ResidentBytes();
}

}  // namespace kapsule
