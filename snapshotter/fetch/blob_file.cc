#include "snapshotter/fetch/blob_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/log.h"

namespace kapsule::fetch {
namespace {

absl::Status WriteAt(int fd, uint64_t offset, ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t n = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoStatus(n < 0 ? errno : ENOSPC, "write to the cache");
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

bool IsDirect(uint64_t offset, ByteSpan bytes) {
  const auto at = reinterpret_cast<uintptr_t>(bytes.data());
  return (offset | bytes.size() | at) % blob::kDirectUnit == 0;
}

absl::StatusOr<UniqueFd> OpenOrCreate(const CacheFolder& folder, const oci::Digest& blob,
                                      uint64_t size) {
  absl::StatusOr<UniqueFd> file = folder.OpenBlob(blob, O_RDWR);
  if (absl::IsNotFound(file.status())) return folder.CreateBlob(blob, size);
  struct stat st;
  if (file.ok() && fstat(file->get(), &st) == 0 && static_cast<uint64_t>(st.st_size) == size)
    return file;
  log::warn("cache: the file of {} is not one of {} bytes, so it is fetched again{}", blob.text(),
            size, file.ok() ? "" : ": " + Describe(file.status()));
  return folder.CreateBlob(blob, size);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlobFile>> BlobFile::Open(const CacheFolder& folder,
                                                         const oci::Digest& blob, uint64_t size) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenOrCreate(folder, blob, size));
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, "stat a cached blob");
  std::unique_ptr<BlobFile> file(new BlobFile(folder, blob, std::move(fd), {st.st_dev, st.st_ino}));
  if (absl::StatusOr<UniqueFd> direct = folder.OpenBlob(blob, O_RDWR | O_DIRECT); direct.ok())
    file->direct_ = *std::move(direct);
  ASSIGN_OR_RETURN(UniqueFd readable, file->OpenForReader());
  ASSIGN_OR_RETURN(file->reader_, blob::DirectFileReader::Adopt(std::move(readable)));
  return file;
}

absl::StatusOr<UniqueFd> BlobFile::OpenForReader() const {
  absl::StatusOr<UniqueFd> fd = folder_.OpenBlob(blob_, O_RDONLY | O_DIRECT);
  if (!fd.ok()) fd = folder_.OpenBlob(blob_, O_RDONLY);
  if (!fd.ok()) return fd.status();
  struct stat st;
  if (fstat(fd->get(), &st) != 0 || !(control::FetchFile{st.st_dev, st.st_ino} == id_))
    return FailedPrecondition("cached blob {}: its file was replaced by others", blob_.hex());
  return fd;
}

absl::Status BlobFile::ReadAt(uint64_t offset, MutableByteSpan out) const {
  return reader_->ReadAt(offset, out);
}

absl::Status BlobFile::Write(uint64_t offset, ByteSpan bytes) const {
  if (direct_.valid() && IsDirect(offset, bytes)) {
    const absl::Status status = WriteAt(direct_.get(), offset, bytes);
    // Some file systems want more alignment than we have.
    if (!absl::IsInternal(status) && !absl::IsInvalidArgument(status)) return status;
  }
  return WriteAt(file_.get(), offset, bytes);
}

absl::Status BlobFile::Punch(uint64_t offset, uint64_t length) const {
  if (fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                static_cast<off_t>(length)) != 0)
    return ErrnoStatus(errno, "punch a hole into a cached blob");
  return absl::OkStatus();
}

absl::Status BlobFile::Sync() const {
  return fdatasync(file_.get()) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "sync a cached blob");
}

uint64_t BlobFile::NextHole(uint64_t offset) const {
  const off_t hole = lseek(file_.get(), static_cast<off_t>(offset), SEEK_HOLE);
  return hole < 0 ? size() : static_cast<uint64_t>(hole);
}

uint64_t BlobFile::BytesOnDisk() const {
  struct stat st;
  return fstat(file_.get(), &st) == 0 ? static_cast<uint64_t>(st.st_blocks) * 512 : 0;
}

}  // namespace kapsule::fetch
