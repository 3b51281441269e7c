// For tests: an image store in memory that can be made to fail.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <string>

#include "core/oci/image_store.h"

namespace kapsule::image {

class MemoryStore final : public oci::ImageTarget, public oci::ImageSource {
 public:
  std::map<oci::Digest, std::string> blobs;
  std::map<oci::Digest, std::string> manifests;
  std::string manifest, media_type;  // what the store's name leads to
  uint64_t room = UINT64_MAX;        // bytes until Write() fails
  int uploads = 0;                   // begun, neither committed nor dropped
  bool digests_agree = true;         // of every commit, with the bytes

  absl::StatusOr<std::unique_ptr<oci::BlobUpload>> StartBlob(
      std::optional<uint64_t> size) override {
    return std::make_unique<Upload>(*this, size);
  }
  absl::StatusOr<bool> HasBlob(const oci::Digest& digest, uint64_t) override {
    return blobs.contains(digest);
  }
  absl::Status PutManifest(std::string_view bytes, const std::string& type) override {
    manifest = bytes;
    media_type = type;
    return absl::OkStatus();
  }
  std::string name() const override { return "memory"; }

  absl::StatusOr<ManifestBytes> GetManifest(const std::optional<oci::Digest>& digest) override {
    if (!digest) return ManifestBytes{manifest, media_type};
    const auto found = manifests.find(*digest);
    if (found == manifests.end()) return NotFound("manifest {}", digest->text());
    return ManifestBytes{found->second, oci::kManifestType};
  }
  absl::Status ReadBlob(const oci::Descriptor& blob,
                        const std::function<absl::Status(ByteSpan)>& sink) override {
    const auto found = blobs.find(blob.digest);
    if (found == blobs.end()) return NotFound("blob {}", blob.digest.text());
    if (found->second.size() != blob.size) return DataLoss("blob {}", blob.digest.text());
    return sink(AsBytes(found->second));
  }

  oci::Descriptor Put(const std::string& type, const std::string& bytes) {
    oci::Descriptor descriptor;
    descriptor.media_type = type;
    descriptor.digest = oci::Digest::Of(AsBytes(bytes));
    descriptor.size = bytes.size();
    blobs[descriptor.digest] = bytes;
    return descriptor;
  }

 private:
  class Upload final : public oci::BlobUpload {
   public:
    Upload(MemoryStore& store, std::optional<uint64_t> size) : store_(store), size_(size) {
      ++store_.uploads;
    }
    ~Upload() override { --store_.uploads; }
    absl::Status Write(ByteSpan bytes) override {
      if (bytes.size() > store_.room) return ResourceExhausted("no space left on device");
      store_.room -= bytes.size();
      bytes_ += AsText(bytes);
      return absl::OkStatus();
    }
    absl::Status Commit(const oci::Digest& digest, uint64_t size) override {
      store_.digests_agree &= digest == oci::Digest::Of(AsBytes(bytes_)) && size == bytes_.size() &&
                              size_.value_or(size) == size;
      store_.blobs[digest] = std::move(bytes_);
      return absl::OkStatus();
    }

   private:
    MemoryStore& store_;
    const std::optional<uint64_t> size_;
    std::string bytes_;
  };
};

}  // namespace kapsule::image
