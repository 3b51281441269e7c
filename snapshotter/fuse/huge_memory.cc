#include "snapshotter/fuse/huge_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

namespace kapsule::fuse {

absl::StatusOr<HugeMemory> HugeMemory::Make(size_t size) {
  size = AlignUp(size, kHugePage);
  if (size == 0) return HugeMemory(nullptr, 0);
  const size_t mapped = size + kHugePage;
  void* const all = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return ErrnoStatus(errno, fmt::format("map {} bytes", mapped));
  auto* const begin = static_cast<std::byte*>(all);
  auto* const data =
      reinterpret_cast<std::byte*>(AlignUp(reinterpret_cast<uintptr_t>(begin), kHugePage));
  // What is left over at the ends goes back.
  const size_t before = static_cast<size_t>(data - begin), behind = mapped - before - size;
  if (before != 0) munmap(begin, before);
  if (behind != 0) munmap(data + size, behind);
  madvise(data, size, MADV_HUGEPAGE);  // a wish
  return HugeMemory(data, size);
}

HugeMemory::HugeMemory(HugeMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

HugeMemory::~HugeMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace kapsule::fuse
