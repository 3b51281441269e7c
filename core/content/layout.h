// The files of an OCI image layout (image-spec image-layout.md).
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "core/base/file.h"
#include "core/oci/image_store.h"

namespace kapsule::content {

inline constexpr char kRefNameAnnotation[] = "org.opencontainers.image.ref.name";

std::filesystem::path BlobsFolder(const std::filesystem::path& layout);
std::filesystem::path BlobPath(const std::filesystem::path& layout, const oci::Digest& digest);

// A regular file, links followed; opening never waits (a fifo is refused).
absl::StatusOr<std::unique_ptr<FileReader>> OpenRegular(const std::filesystem::path& path);
absl::StatusOr<std::string> ReadRegular(const std::filesystem::path& path, uint64_t limit);

// FailedPrecondition: `layout` has no oci-layout file of version 1.
absl::Status CheckLayout(const std::filesystem::path& layout);

// Keeps other processes out of the layout's index and of making temporary
// files, while it lives.
class LayoutLock {
 public:
  static absl::StatusOr<LayoutLock> Take(const std::filesystem::path& layout);

 private:
  explicit LayoutLock(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

// "oci:/models/tiny:enc"
std::string LayoutName(const std::filesystem::path& layout, const std::string& ref_name);

}  // namespace kapsule::content
