#include "core/blob/direct_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>

namespace kapsule::blob {
namespace {

constexpr size_t kBounceSize = 256 << 10;

bool IsAligned(uint64_t n) { return n % kDirectUnit == 0; }
bool IsAligned(const void* p) { return IsAligned(reinterpret_cast<uintptr_t>(p)); }

ssize_t Pread(int fd, MutableByteSpan out, uint64_t offset) {
  ssize_t n;
  do {
    n = pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
  } while (n < 0 && errno == EINTR);
  return n;
}

// Some file systems take the flag and refuse the reads (or want more than 4 KiB
// of alignment), so one read is tried.
bool DirectReadsWork(int fd) {
  AlignedBuffer buffer(kDirectUnit);
  return Pread(fd, buffer.bytes(), 0) >= 0 || errno != EINVAL;
}

bool LiesInMemory(int fd) {
  struct statfs fs;
  return fstatfs(fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

}  // namespace

AlignedBuffer::AlignedBuffer(size_t size)
    : data_(static_cast<std::byte*>(::operator new (size, std::align_val_t{kDirectUnit}))),
      size_(size) {}

AlignedBuffer::~AlignedBuffer() { ::operator delete (data_, std::align_val_t{kDirectUnit}); }

absl::StatusOr<std::unique_ptr<DirectFileReader>> DirectFileReader::Open(
    const std::filesystem::path& path) {
  absl::StatusOr<UniqueFd> fd = OpenFile(path, O_RDONLY | O_DIRECT);
  if (!fd.ok()) fd = OpenFile(path, O_RDONLY);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<std::unique_ptr<DirectFileReader>> file = Adopt(*std::move(fd));
  if (!file.ok()) return Annotate(file.status(), path.string());
  return file;
}

absl::StatusOr<std::unique_ptr<DirectFileReader>> DirectFileReader::Adopt(UniqueFd fd) {
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, "stat of a layer file");
  if (!S_ISREG(st.st_mode)) return InvalidArgument("layer file is no regular file");
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0) return ErrnoStatus(errno, "flags of a layer file");

  bool direct = (flags & O_DIRECT) != 0;
  if (direct && !DirectReadsWork(fd.get())) {
    if (fcntl(fd.get(), F_SETFL, flags & ~O_DIRECT) != 0)
      return ErrnoStatus(errno, "buffered reads of a layer file");
    direct = false;
  }
  if (!direct) posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);
  const bool in_memory = LiesInMemory(fd.get());
  return std::unique_ptr<DirectFileReader>(
      new DirectFileReader(std::move(fd), static_cast<uint64_t>(st.st_size), direct, in_memory));
}

absl::Status DirectFileReader::ReadAt(uint64_t offset, MutableByteSpan out) const {
  if (offset > size_ || out.size() > size_ - offset)
    return absl::OutOfRangeError(
        fmt::format("{} bytes at byte {} of {}", out.size(), offset, size_));
  while (!out.empty()) {
    ASSIGN_OR_RETURN(const size_t n, ReadSome(offset, out));
    if (n == 0) return DataLoss("file ends at byte {} of {}", offset, size_);
    offset += n;
    out = out.subspan(n);
  }
  return absl::OkStatus();
}

// At least one byte, unless the file has become shorter.
absl::StatusOr<size_t> DirectFileReader::ReadSome(uint64_t offset, MutableByteSpan out) const {
  if (direct_) {
    const bool in_place = IsAligned(offset) && IsAligned(out.data()) && out.size() >= kDirectUnit;
    if (!in_place) return ReadThroughBuffer(offset, out);
    out = out.first(AlignDown(out.size(), kDirectUnit));
  }
  const ssize_t n = Pread(fd_.get(), out, offset);
  if (n < 0) return ErrnoStatus(errno, fmt::format("read at byte {}", offset));
  return static_cast<size_t>(n);
}

absl::StatusOr<size_t> DirectFileReader::ReadThroughBuffer(uint64_t offset,
                                                           MutableByteSpan out) const {
  thread_local AlignedBuffer bounce(kBounceSize);
  const uint64_t from = AlignDown(offset, kDirectUnit);
  const size_t skip = offset - from;
  const size_t want = std::min<uint64_t>(AlignUp(skip + out.size(), kDirectUnit), kBounceSize);
  const ssize_t n = Pread(fd_.get(), bounce.bytes().first(want), from);
  if (n < 0) return ErrnoStatus(errno, fmt::format("read at byte {}", from));
  if (static_cast<size_t>(n) <= skip) return size_t{0};
  const size_t got = std::min(static_cast<size_t>(n) - skip, out.size());
  std::memcpy(out.data(), bounce.bytes().data() + skip, got);
  return got;
}

}  // namespace kapsule::blob
