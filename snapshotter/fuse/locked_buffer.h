// Memory that plaintext passes through.
#pragma once

#include <cstddef>

#include "core/base/bytes.h"

namespace kapsule::fuse {

// Zeros at first, left out of core dumps. A page takes memory from its first use on, and is
// locked then where the limit, which the whole buffer counts against, allows.
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
