// Reading layer files past the page cache: ciphertext is read once, and the
// plaintext made from it is what the kernel caches.
#pragma once

#include <memory>

#include "core/base/file.h"

namespace kapsule::blob {

// Offsets, lengths and addresses of direct reads are multiples of this.
inline constexpr size_t kDirectUnit = 4096;

// Memory for direct reads, aligned to kDirectUnit.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t size);
  ~AlignedBuffer();
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  MutableByteSpan bytes() { return {data_, size_}; }

 private:
  std::byte* const data_;
  const size_t size_;
};

// A regular file opened with O_DIRECT or without. Ranges and buffers that are
// multiples of kDirectUnit are read in place; others go through one small
// buffer a thread. Thread-safe.
class DirectFileReader final : public ReaderAt {
 public:
  // Opens `path` with O_DIRECT where its file system takes that.
  static absl::StatusOr<std::unique_ptr<DirectFileReader>> Open(const std::filesystem::path& path);
  // Adopts `fd`. Where it is O_DIRECT but reading so fails, the flag is taken
  // from it, and the kernel is told that reads are random; so it is for a
  // buffered one.
  //   InvalidArgument  not a regular file
  static absl::StatusOr<std::unique_ptr<DirectFileReader>> Adopt(UniqueFd fd);

  uint64_t size() const override { return size_; }
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override;
  bool in_memory() const override { return in_memory_; }  // a file of tmpfs
  bool direct() const { return direct_; }

 private:
  DirectFileReader(UniqueFd fd, uint64_t size, bool direct, bool in_memory)
      : fd_(std::move(fd)), size_(size), direct_(direct), in_memory_(in_memory) {}
  absl::StatusOr<size_t> ReadSome(uint64_t offset, MutableByteSpan out) const;
  absl::StatusOr<size_t> ReadThroughBuffer(uint64_t offset, MutableByteSpan out) const;

  const UniqueFd fd_;
  const uint64_t size_;
  const bool direct_, in_memory_;
};

}  // namespace kapsule::blob
