// Reads images from an OCI image layout.
#pragma once

#include "core/content/layout.h"

namespace kapsule::content {

// Thread-safe.
class LayoutSource final : public oci::ImageSource {
 public:
  // Without a `ref_name` the layout must hold exactly one image.
  //   FailedPrecondition  the folder holds no layout
  static absl::StatusOr<std::unique_ptr<LayoutSource>> Open(const std::filesystem::path& layout,
                                                            std::string ref_name);

  absl::StatusOr<ManifestBytes> GetManifest(const std::optional<oci::Digest>& digest) override;
  absl::Status ReadBlob(const oci::Descriptor& blob,
                        const std::function<absl::Status(ByteSpan)>& sink) override;
  std::string name() const override { return LayoutName(layout_, ref_name_); }

 private:
  LayoutSource(std::filesystem::path layout, std::string ref_name)
      : layout_(std::move(layout)), ref_name_(std::move(ref_name)) {}
  absl::StatusOr<oci::Descriptor> FindEntry() const;

  const std::filesystem::path layout_;
  const std::string ref_name_;
};

}  // namespace kapsule::content
