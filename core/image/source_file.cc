#include "core/image/source_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <tuple>

namespace kapsule::image {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kMostAsked = 1 << 20;  // bytes looked up in the page cache at once

// What changes when somebody writes to a file.
auto VersionOf(const struct stat& st) {
  return std::tuple(st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
}

bool IsAligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % kPage == 0; }

}  // namespace

SourceFile::SourceFile(std::filesystem::path path, std::unique_ptr<FileReader> file)
    : path_(std::move(path)), file_(std::move(file)) {
  posix_fadvise(file_->fd(), 0, 0, POSIX_FADV_SEQUENTIAL);  // a hint; may fail
  if (file_->size() == 0) return;
  void* const map = mmap(nullptr, file_->size(), PROT_READ, MAP_SHARED, file_->fd(), 0);
  if (map != MAP_FAILED) map_ = map;
}

SourceFile::~SourceFile() {
  if (map_ != nullptr) munmap(map_, file_->size());
}

absl::StatusOr<std::unique_ptr<SourceFile>> SourceFile::Open(const std::filesystem::path& path,
                                                             uint64_t size) {
  ASSIGN_OR_RETURN(std::unique_ptr<FileReader> file, FileReader::Open(path));
  std::unique_ptr<SourceFile> source(new SourceFile(path, std::move(file)));
  if (fstat(source->file_->fd(), &source->opened_) != 0) return ErrnoStatus(errno, path.string());
  if (source->file_->size() != size)
    return FailedPrecondition("{}: {} bytes, {} when the build began: it must not change",
                              path.string(), source->file_->size(), size);
  return source;
}

// Whoever neither owns the file nor may write to it is told that all of it is
// there: it is then read through the page cache, as any file is.
bool SourceFile::InPageCache(size_t size) const {
  std::array<unsigned char, kMostAsked / kPage> resident;
  if (map_ == nullptr || size > kMostAsked) return false;
  if (mincore(static_cast<std::byte*>(map_) + at_, size, resident.data()) != 0) return false;
  const auto pages = std::span(resident).first(CeilDiv(size, sysconf(_SC_PAGESIZE)));
  return std::ranges::all_of(pages, [](unsigned char page) { return (page & 1) != 0; });
}

// 0 where it must be read through the page cache, whose error then says why.
size_t SourceFile::ReadDirect(MutableByteSpan room) {
  const size_t wanted = std::min<uint64_t>(AlignUp(left(), kPage), AlignDown(room.size(), kPage));
  if (!can_direct_ || wanted == 0 || at_ % kPage != 0 || !IsAligned(room.data()) ||
      InPageCache(std::min<uint64_t>(wanted, left())))
    return 0;
  can_direct_ = SetDirectIo(file_->fd(), true);
  if (!can_direct_) return 0;
  ssize_t n;
  do n = pread(file_->fd(), room.data(), wanted, static_cast<off_t>(at_));
  while (n < 0 && errno == EINTR);
  can_direct_ = SetDirectIo(file_->fd(), false) && n > 0;
  return n > 0 ? std::min<uint64_t>(n, left()) : 0;
}

absl::StatusOr<size_t> SourceFile::Read(MutableByteSpan room) {
  size_t n = ReadDirect(room);
  if (n == 0) {
    n = std::min<uint64_t>(room.size(), left());
    RETURN_IF_ERROR(file_->ReadAt(at_, room.first(n)));
  }
  at_ += n;
  return n;
}

absl::Status SourceFile::CheckUnchanged() const {
  struct stat now;
  if (fstat(file_->fd(), &now) != 0) return ErrnoStatus(errno, path_.string());
  if (VersionOf(now) != VersionOf(opened_))
    return FailedPrecondition("{}: changed while it was read", path_.string());
  return absl::OkStatus();
}

}  // namespace kapsule::image
