// File descriptors and whole-file operations.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "core/base/bytes.h"
#include "core/base/status.h"

namespace kapsule {

// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset();
  absl::StatusOr<UniqueFd> Duplicate() const;  // close-on-exec

 private:
  int fd_ = -1;
};

// Bytes that can be read anywhere. Thread-safe.
class ReaderAt {
 public:
  virtual ~ReaderAt() = default;
  virtual uint64_t size() const = 0;
  // Fills `out` from byte `offset` on; never short.
  //   OutOfRange  the range is not inside [0, size())
  //   DataLoss    the bytes are there and bad, or reading failed with EIO
  virtual absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const = 0;
  // True where the bytes are known to lie in memory: reading ahead gains nothing.
  virtual bool in_memory() const { return false; }
  // False where reading the range would fail because its bytes have to come from
  // somewhere first.
  virtual bool IsThere(uint64_t /*offset*/, size_t /*size*/) const { return true; }
  // Calls `then` once: at once in this thread where the range is there, else later
  // in another one, when it has come or cannot come. It must not wait.
  virtual void WhenThere(uint64_t /*offset*/, size_t /*size*/,
                         std::function<void(absl::Status)> then) const {
    then(absl::OkStatus());
  }
};

// A regular file. Alignment is the caller's business where `fd` is O_DIRECT.
class FileReader final : public ReaderAt {
 public:
  static absl::StatusOr<std::unique_ptr<FileReader>> Open(const std::filesystem::path& path);
  FileReader(UniqueFd fd, uint64_t size) : fd_(std::move(fd)), size_(size) {}
  uint64_t size() const override { return size_; }
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override;
  int fd() const { return fd_.get(); }

 private:
  const UniqueFd fd_;
  const uint64_t size_;
};

// Bytes in memory; not owned.
class MemoryReader final : public ReaderAt {
 public:
  explicit MemoryReader(ByteSpan bytes) : bytes_(bytes) {}
  uint64_t size() const override { return bytes_.size(); }
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override;

 private:
  const ByteSpan bytes_;
};

// open(2) with O_CLOEXEC; errors name the path.
absl::StatusOr<UniqueFd> OpenFile(const std::filesystem::path& path, int flags, unsigned mode = 0);

// Turns O_DIRECT of an open file on or off. False where its file system has none.
bool SetDirectIo(int fd, bool on);

// Writes all of `bytes` at the file's position.
absl::Status WriteAll(int fd, ByteSpan bytes);

// The whole file. InvalidArgument where it is larger than `limit` bytes or not
// a regular file.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path, uint64_t limit);

// Replaces `path` by a new file: written as "new-…" beside it, fsynced, renamed.
absl::Status WriteFileAtomic(const std::filesystem::path& path, ByteSpan bytes, unsigned mode);

// mkdir -p; directories that are made get `mode`.
absl::Status MakeDirs(const std::filesystem::path& path, unsigned mode);

// rm -r without following links; a missing path is fine.
absl::Status RemoveTree(const std::filesystem::path& path);

// A sealed memory file holding `bytes`, to hand to another process.
absl::StatusOr<UniqueFd> SealedMemfd(const char* name, ByteSpan bytes);

// The bytes of a memory file from another process. InvalidArgument where it is
// not sealed against shrinking and writing, or larger than `limit`.
absl::StatusOr<std::string> ReadSealedMemfd(int fd, uint64_t limit);

}  // namespace kapsule
