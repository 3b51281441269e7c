#include "kapsule-ctl/staged_target.h"

#include <algorithm>

namespace kapsule::ctl {

class StagedTarget::Upload final : public oci::BlobUpload {
 public:
  Upload(std::vector<Blob>& held, std::unique_ptr<oci::BlobUpload> upload)
      : held_(held), upload_(std::move(upload)) {}

  absl::Status Write(ByteSpan bytes) override { return upload_->Write(bytes); }
  absl::Status Commit(const oci::Digest& digest, uint64_t size) override {
    held_.push_back({std::move(upload_), digest, size});
    return absl::OkStatus();
  }

 private:
  std::vector<Blob>& held_;
  std::unique_ptr<oci::BlobUpload> upload_;
};

absl::StatusOr<std::unique_ptr<oci::BlobUpload>> StagedTarget::StartBlob(
    std::optional<uint64_t> size) {
  ASSIGN_OR_RETURN(std::unique_ptr<oci::BlobUpload> upload, target_->StartBlob(size));
  return std::make_unique<Upload>(held_, std::move(upload));
}

absl::StatusOr<bool> StagedTarget::HasBlob(const oci::Digest& digest, uint64_t size) {
  if (std::ranges::any_of(held_, [&](const Blob& blob) { return blob.digest == digest; }))
    return true;
  return target_->HasBlob(digest, size);
}

absl::Status StagedTarget::PutManifest(std::string_view bytes, const std::string& media_type) {
  for (Blob& blob : held_) {
    RETURN_IF_ERROR(blob.upload->Commit(blob.digest, blob.size));
    blob.upload.reset();
  }
  held_.clear();
  return target_->PutManifest(bytes, media_type);
}

}  // namespace kapsule::ctl
