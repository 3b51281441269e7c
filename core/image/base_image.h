// A runtime image whose layers go on top of a model's.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "core/oci/image_store.h"

namespace kapsule::image {

struct BaseImage {
  std::vector<oci::Descriptor> layers;  // OCI media types, Docker's converted
  std::vector<oci::Digest> diff_ids;    // one for each layer
  Json config;
};

struct ImageManifest {
  oci::Manifest manifest;
  oci::Digest digest;
  oci::ImageSource::ManifestBytes original;                   // of the manifest
  std::optional<oci::ImageSource::ManifestBytes> index = {};  // that named it, if one did
};

// The manifest of the source's image; of an index that of linux/amd64.
//   NotFound  no such image, or none for linux/amd64
absl::StatusOr<ImageManifest> ReadImageManifest(oci::ImageSource& source);

// An image's config; at most oci::kMaxManifestBytes.
absl::StatusOr<std::string> ReadConfig(oci::ImageSource& source, const oci::Descriptor& config);

// Reads manifest and config.
//   NotFound         as ReadImageManifest()
//   InvalidArgument  malformed, or a number of diff_ids that is not that of layers
//   Unimplemented    layers that a registry does not hand out, or no image at all
absl::StatusOr<BaseImage> ReadBaseImage(oci::ImageSource& source);

// Copies a blob unless `target` has it; `on_written` as in LayerOptions.
absl::Status CopyBlob(oci::ImageSource& source, oci::ImageTarget& target,
                      const oci::Descriptor& blob,
                      const std::function<absl::Status(uint64_t)>& on_written);

}  // namespace kapsule::image
