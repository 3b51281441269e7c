#include "snapshotter/fuse/locked_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "core/base/secret.h"

namespace kapsule::fuse {

absl::StatusOr<LockedBuffer> LockedBuffer::Make(size_t size) {
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, fmt::format("map {} bytes", size));
  // A lower limit leaves it pageable.
  const bool locked = mlock2(data, size, MLOCK_ONFAULT) == 0;
  madvise(data, size, MADV_DONTDUMP);
  return LockedBuffer(static_cast<std::byte*>(data), size, locked);
}

LockedBuffer::LockedBuffer(LockedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      locked_(other.locked_) {}

LockedBuffer::~LockedBuffer() {
  if (data_ == nullptr) return;
  Cleanse(data_, size_);
  munmap(data_, size_);
}

}  // namespace kapsule::fuse
