#include "snapshotter/blob_pins.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <mutex>

#include "core/base/log.h"

namespace kapsule::snapshotter {
namespace fs = std::filesystem;
namespace {

absl::Status CheckBlob(const UniqueFd& fd, const std::string& name, uint64_t size) {
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, name);
  if (!S_ISREG(st.st_mode)) return InvalidArgument("{}: not a regular file", name);
  if (static_cast<uint64_t>(st.st_size) != size)
    return InvalidArgument("{}: {} bytes where {} are expected", name, st.st_size, size);
  return absl::OkStatus();
}

// Opens `path` and checks its kind and size.
absl::StatusOr<UniqueFd> OpenBlob(const fs::path& path, uint64_t size) {
  absl::StatusOr<UniqueFd> fd = OpenFile(path, O_RDONLY | O_DIRECT | O_NOFOLLOW);
  if (absl::IsInvalidArgument(fd.status())) {  // no direct I/O there
    fd = OpenFile(path, O_RDONLY | O_NOFOLLOW);
    if (fd.ok()) posix_fadvise(fd->get(), 0, 0, POSIX_FADV_RANDOM);
  }
  RETURN_IF_ERROR(fd.status());
  RETURN_IF_ERROR(CheckBlob(*fd, path.string(), size));
  return fd;
}

void WarnOfOtherFileSystem(const fs::path& content_root, const fs::path& folder) {
  static std::once_flag once;
  std::call_once(once, [&] {
    log::warn(
        "{} and {} are on different file systems: blobs of open layers are held by descriptors, "
        "not by links, and an image deleted from containerd is gone after a restart",
        content_root.string(), folder.string());
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlobPins>> BlobPins::Start(fs::path folder, fs::path content_root,
                                                          const std::set<oci::Digest>& keep) {
  RETURN_IF_ERROR(MakeDirs(folder, 0700));
  std::set<std::string> names;
  for (const oci::Digest& digest : keep) names.insert(digest.hex());
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (!names.contains(it->path().filename().string())) RETURN_IF_ERROR(RemoveTree(it->path()));
  }
  if (error) return ErrnoStatus(error.value(), folder.string());
  return std::unique_ptr<BlobPins>(new BlobPins(std::move(folder), std::move(content_root)));
}

absl::StatusOr<UniqueFd> BlobPins::Open(const oci::Digest& digest, uint64_t size) {
  {
    absl::MutexLock lock(&mu_);
    const auto it = fds_.find(digest);
    if (it != fds_.end()) {
      RETURN_IF_ERROR(CheckBlob(it->second, "blob " + digest.text(), size));
      return it->second.Duplicate();
    }
  }
  return Pin(digest, size);
}

absl::StatusOr<UniqueFd> BlobPins::Pin(const oci::Digest& digest, uint64_t size) {
  const fs::path link = folder_ / digest.hex();
  absl::StatusOr<UniqueFd> pinned = OpenBlob(link, size);
  if (pinned.ok()) return pinned;

  const fs::path blob = content_root_ / "blobs/sha256" / digest.hex();
  absl::StatusOr<UniqueFd> fd = OpenBlob(blob, size);
  if (absl::IsNotFound(fd.status())) {
    if (!absl::IsNotFound(pinned.status())) return pinned;
    return Unavailable("blob {} is not in containerd's content store {}: not downloaded yet",
                       digest.text(), content_root_.string());
  }
  RETURN_IF_ERROR(fd.status());
  RETURN_IF_ERROR(Link(blob, link));
  return fd;
}

// `blob` has been opened: it is good.
absl::Status BlobPins::Link(const fs::path& blob, const fs::path& link) {
  const fs::path made = folder_ / ("new-" + link.filename().string());
  RETURN_IF_ERROR(RemoveTree(made));
  if (::link(blob.c_str(), made.c_str()) != 0) {
    if (errno != EXDEV && errno != EPERM && errno != EMLINK)
      return ErrnoStatus(errno, "link " + blob.string() + " to " + made.string());
    WarnOfOtherFileSystem(content_root_, folder_);
    return absl::OkStatus();
  }
  const int error = rename(made.c_str(), link.c_str()) == 0 ? 0 : errno;
  // Renaming does nothing where `link` is the same file already.
  RETURN_IF_ERROR(RemoveTree(made));
  return error == 0 ? absl::OkStatus() : ErrnoStatus(error, "rename " + made.string());
}

void BlobPins::Hold(const oci::Digest& digest, UniqueFd fd) {
  struct stat link, open;
  if (lstat((folder_ / digest.hex()).c_str(), &link) == 0 && fstat(fd.get(), &open) == 0 &&
      link.st_dev == open.st_dev && link.st_ino == open.st_ino)
    return;
  absl::MutexLock lock(&mu_);
  fds_.try_emplace(digest, std::move(fd));
}

void BlobPins::Release(const oci::Digest& digest) {
  UniqueFd fd;
  {
    absl::MutexLock lock(&mu_);
    const auto it = fds_.find(digest);
    if (it != fds_.end()) {
      fd = std::move(it->second);
      fds_.erase(it);
    }
  }
  const absl::Status removed = RemoveTree(folder_ / digest.hex());
  if (!removed.ok()) log::warn("unpin blob {}: {}", digest.text(), Describe(removed));
}

}  // namespace kapsule::snapshotter
