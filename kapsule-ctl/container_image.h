// What containerd needs of an image, read from where it is and checked.
#pragma once

#include <string>
#include <vector>

#include "core/image/base_image.h"

namespace kapsule::ctl {

// Of linux/amd64.
struct ContainerImage {
  image::ImageManifest manifest;
  std::string config;
  // One for each layer.
  std::vector<oci::Digest> diff_ids, chain_ids;
  std::vector<bool> is_model;  // whether it is Kapsule's

  const std::vector<oci::Descriptor>& layers() const { return manifest.manifest.layers; }
  // What the image's name points to: the index, or the manifest.
  const oci::ImageSource::ManifestBytes& top() const {
    return manifest.index ? *manifest.index : manifest.original;
  }
};

oci::Descriptor DescriptorOf(const oci::ImageSource::ManifestBytes& document);

//   Unimplemented  no container image, or an encrypted layer that is not Kapsule's,
//                  which containerd could not unpack
absl::StatusOr<ContainerImage> ReadContainerImage(oci::ImageSource& source);

}  // namespace kapsule::ctl
