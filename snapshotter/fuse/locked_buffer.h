// Memory that requests and plaintext pass through.
#pragma once

#include <cstddef>

#include "core/base/bytes.h"

namespace kapsule::fuse {

// Pages that are there from the start, locked where the limit allows, and left
// out of core dumps. A process that is killed with unmapped pages in a read of
// /dev/fuse would lose the request.
class LockedBuffer {
 public:
  // ResourceExhausted: no memory.
  static absl::StatusOr<LockedBuffer> Make(size_t size);
  LockedBuffer(LockedBuffer&& other) noexcept;
  LockedBuffer& operator=(LockedBuffer&&) = delete;
  ~LockedBuffer();

  MutableByteSpan bytes() const { return {data_, size_}; }
  bool locked() const { return locked_; }

 private:
  LockedBuffer(std::byte* data, size_t size, bool locked)
      : data_(data), size_(size), locked_(locked) {}
  std::byte* data_;
  size_t size_;
  bool locked_;
};

}  // namespace kapsule::fuse
