// A layout that gets all blobs of an image, or none.
#pragma once

#include <memory>
#include <vector>

#include "core/oci/image_store.h"

namespace kapsule::ctl {

// Holds back the commit of each blob until PutManifest(), so that a build that
// fails or is cancelled leaves no finished blob behind either: under a key that
// is gone with the build nobody could ever use one. For layouts only: a
// registry does not wait. Each held blob keeps a file open.
class StagedTarget final : public oci::ImageTarget {
 public:
  explicit StagedTarget(std::unique_ptr<oci::ImageTarget> target) : target_(std::move(target)) {}

  absl::StatusOr<std::unique_ptr<oci::BlobUpload>> StartBlob(std::optional<uint64_t> size) override;
  absl::StatusOr<bool> HasBlob(const oci::Digest& digest, uint64_t size) override;
  absl::Status PutManifest(std::string_view bytes, const std::string& media_type) override;
  std::string name() const override { return target_->name(); }

 private:
  class Upload;
  struct Blob {
    std::unique_ptr<oci::BlobUpload> upload;
    oci::Digest digest;
    uint64_t size;
  };

  const std::unique_ptr<oci::ImageTarget> target_;
  std::vector<Blob> held_;
};

}  // namespace kapsule::ctl
