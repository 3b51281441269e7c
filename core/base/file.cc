#include "core/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

namespace kapsule {
namespace fs = std::filesystem;

void UniqueFd::reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

absl::StatusOr<UniqueFd> UniqueFd::Duplicate() const {
  const int fd = fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return ErrnoStatus(errno, "duplicate a file descriptor");
  return UniqueFd(fd);
}

namespace {

absl::Status CheckRange(uint64_t offset, uint64_t length, uint64_t size) {
  if (offset > size || length > size - offset)
    return absl::OutOfRangeError(
        fmt::format("bytes {} to {} of {}", offset, offset + length, size));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<FileReader>> FileReader::Open(const fs::path& path) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(path, O_RDONLY));
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, path.string());
  if (!S_ISREG(st.st_mode)) return InvalidArgument("{}: not a regular file", path.string());
  return std::make_unique<FileReader>(std::move(fd), static_cast<uint64_t>(st.st_size));
}

absl::Status FileReader::ReadAt(uint64_t offset, MutableByteSpan out) const {
  RETURN_IF_ERROR(CheckRange(offset, out.size(), size_));
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n =
        pread(fd_.get(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, fmt::format("read at byte {}", offset + done));
    if (n == 0) return DataLoss("file ends at byte {} of {}", offset + done, size_);
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status MemoryReader::ReadAt(uint64_t offset, MutableByteSpan out) const {
  RETURN_IF_ERROR(CheckRange(offset, out.size(), bytes_.size()));
  if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> OpenFile(const fs::path& path, int flags, unsigned mode) {
  const int fd = open(path.c_str(), flags | O_CLOEXEC, mode);
  if (fd < 0) return ErrnoStatus(errno, path.string());
  return UniqueFd(fd);
}

bool SetDirectIo(int fd, bool on) {
  const int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
}

absl::Status WriteAll(int fd, ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "write");
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const fs::path& path, uint64_t limit) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileReader> file, FileReader::Open(path));
  if (file->size() > limit)
    return InvalidArgument("{}: {} bytes, more than the limit of {}", path.string(), file->size(),
                           limit);
  std::string text(file->size(), '\0');
  const absl::Status read = file->ReadAt(0, std::as_writable_bytes(std::span(text)));
  if (!read.ok()) return Annotate(read, path.string());
  return text;
}

absl::Status WriteFileAtomic(const fs::path& path, ByteSpan bytes, unsigned mode) {
  const fs::path folder = path.has_parent_path() ? path.parent_path() : ".";
  std::string temporary = (folder / ("new-" + path.filename().string() + "-XXXXXX")).string();
  UniqueFd fd(mkostemp(temporary.data(), O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, temporary);
  absl::Status status = WriteAll(fd.get(), bytes);
  if (status.ok() && (fchmod(fd.get(), mode) != 0 || fsync(fd.get()) != 0))
    status = ErrnoStatus(errno, "sync");
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0)
    status = ErrnoStatus(errno, "rename");
  if (!status.ok()) {
    unlink(temporary.c_str());
    return Annotate(status, "write " + path.string());
  }
  ASSIGN_OR_RETURN(const UniqueFd folder_fd, OpenFile(folder, O_RDONLY | O_DIRECTORY));
  if (fsync(folder_fd.get()) != 0) return ErrnoStatus(errno, "sync " + folder.string());
  return absl::OkStatus();
}

absl::Status MakeDirs(const fs::path& path, unsigned mode) {
  fs::path made;
  for (const fs::path& part : path) {
    made /= part;
    if (mkdir(made.c_str(), mode) != 0 && errno != EEXIST) return ErrnoStatus(errno, made.string());
  }
  struct stat st;
  if (stat(path.c_str(), &st) != 0) return ErrnoStatus(errno, path.string());
  if (!S_ISDIR(st.st_mode)) return ErrnoStatus(ENOTDIR, path.string());
  return absl::OkStatus();
}

absl::Status RemoveTree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return ErrnoStatus(error.value(), "remove " + path.string());
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> SealedMemfd(const char* name, ByteSpan bytes) {
  UniqueFd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ErrnoStatus(errno, "memfd_create");
  RETURN_IF_ERROR(WriteAll(fd.get(), bytes));
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) != 0)
    return ErrnoStatus(errno, "seal a memfd");
  return fd;
}

absl::StatusOr<std::string> ReadSealedMemfd(int fd, uint64_t limit) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_WRITE)) != (F_SEAL_SHRINK | F_SEAL_WRITE))
    return InvalidArgument("the passed file is not a sealed memfd");
  struct stat st;
  if (fstat(fd, &st) != 0) return ErrnoStatus(errno, "stat a memfd");
  if (static_cast<uint64_t>(st.st_size) > limit)
    return InvalidArgument("the passed memfd has {} bytes, more than the limit of {}", st.st_size,
                           limit);
  std::string text(static_cast<size_t>(st.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = pread(fd, text.data() + done, text.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoStatus(n < 0 ? errno : EIO, "read a memfd");
    done += static_cast<size_t>(n);
  }
  return text;
}

}  // namespace kapsule
