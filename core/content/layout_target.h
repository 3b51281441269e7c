// Writes images into an OCI image layout. Blobs are written as
// "blobs/sha256/new-…", fsynced and renamed; index.json is replaced as a whole.
#pragma once

#include "core/content/layout.h"

namespace kapsule::content {

// Several targets, also of several processes, may write into one layout. One
// target is used by one thread at a time.
class LayoutTarget final : public oci::ImageTarget {
 public:
  // Makes the layout where there is none, and removes what a killed writer left
  // behind. An image without a `ref_name` gets an entry without one.
  //   FailedPrecondition  the folder holds something else
  static absl::StatusOr<std::unique_ptr<LayoutTarget>> Open(const std::filesystem::path& layout,
                                                            std::string ref_name);

  // Commit() gives DataLoss where another number of bytes was written.
  absl::StatusOr<std::unique_ptr<oci::BlobUpload>> StartBlob(std::optional<uint64_t> size) override;
  absl::StatusOr<bool> HasBlob(const oci::Digest& digest, uint64_t size) override;
  // The entry of that name is replaced, others stay as they are.
  absl::Status PutManifest(std::string_view bytes, const std::string& media_type) override;
  std::string name() const override { return LayoutName(layout_, ref_name_); }

 private:
  LayoutTarget(std::filesystem::path layout, std::string ref_name)
      : layout_(std::move(layout)), ref_name_(std::move(ref_name)) {}

  const std::filesystem::path layout_;
  const std::string ref_name_;
};

}  // namespace kapsule::content
