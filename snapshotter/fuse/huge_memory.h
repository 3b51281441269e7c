// Memory that disks read into: ciphertext alone.
#pragma once

#include "core/base/bytes.h"

namespace kapsule::fuse {

inline constexpr size_t kHugePage = 2 << 20;

// Aligned to kHugePage and of huge pages where the kernel has them, so that a
// direct read of it pins few. Pages appear when they are used first.
class HugeMemory {
 public:
  // ResourceExhausted: no address space.
  static absl::StatusOr<HugeMemory> Make(size_t size);
  HugeMemory(HugeMemory&& other) noexcept;
  HugeMemory& operator=(HugeMemory&&) = delete;
  ~HugeMemory();

  MutableByteSpan bytes() const { return {data_, size_}; }

 private:
  HugeMemory(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* data_;
  size_t size_;
};

}  // namespace kapsule::fuse
