#include "core/content/layout.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>

namespace kapsule::content {
namespace fs = std::filesystem;

fs::path BlobsFolder(const fs::path& layout) { return layout / "blobs" / "sha256"; }

fs::path BlobPath(const fs::path& layout, const oci::Digest& digest) {
  return BlobsFolder(layout) / digest.hex();
}

absl::StatusOr<std::unique_ptr<FileReader>> OpenRegular(const fs::path& path) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(path, O_RDONLY | O_NONBLOCK));
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, path.string());
  if (!S_ISREG(st.st_mode)) return InvalidArgument("{}: not a regular file", path.string());
  return std::make_unique<FileReader>(std::move(fd), static_cast<uint64_t>(st.st_size));
}

absl::StatusOr<std::string> ReadRegular(const fs::path& path, uint64_t limit) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileReader> file, OpenRegular(path));
  if (file->size() > limit)
    return InvalidArgument("{}: {} bytes, more than the limit of {}", path.string(), file->size(),
                           limit);
  std::string text(file->size(), '\0');
  const absl::Status read = file->ReadAt(0, std::as_writable_bytes(std::span(text)));
  if (!read.ok()) return Annotate(read, path.string());
  return text;
}

absl::Status CheckLayout(const fs::path& layout) {
  const absl::StatusOr<std::string> text = ReadRegular(layout / "oci-layout", 4096);
  if (!text.ok())
    return FailedPrecondition("{} is no image layout: {}", layout.string(), Message(text.status()));
  const absl::StatusOr<Json> json = ParseJson(*text, 4096);
  const absl::StatusOr<std::string> version =
      json.ok() ? StringMember(*json, "imageLayoutVersion") : json.status();
  if (!version.ok())
    return FailedPrecondition("{}/oci-layout: {}", layout.string(), Message(version.status()));
  if (!version->starts_with("1."))
    return FailedPrecondition("{}/oci-layout: not of version 1", layout.string());
  return absl::OkStatus();
}

absl::StatusOr<LayoutLock> LayoutLock::Take(const fs::path& layout) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(layout, O_RDONLY | O_DIRECTORY));
  while (flock(fd.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return ErrnoStatus(errno, "lock " + layout.string());
  }
  return LayoutLock(std::move(fd));
}

std::string LayoutName(const fs::path& layout, const std::string& ref_name) {
  return "oci:" + layout.string() + (ref_name.empty() ? "" : ":" + ref_name);
}

}  // namespace kapsule::content
