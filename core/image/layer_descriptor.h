// The descriptor of a Kapsule layer: what a manifest says about it.
#pragma once

#include <span>
#include <string>

#include "core/crypt/keys.h"
#include "core/image/layer_writer.h"
#include "core/oci/manifest.h"

namespace kapsule::image {

inline constexpr char kKindPrefix[] = "application/vnd.kapsule.image.";

struct LayerNames {
  std::string kind;       // "skeleton", "model", "adapter", "projector" or "config"
  std::string file = {};  // the file that the layer holds; empty where it has several
};

// Wraps the key of an encrypted layer for `recipients`.
//   InvalidArgument  the label for the snapshotter would be longer than
//                    containerd allows; no recipients for an encrypted layer
absl::StatusOr<oci::Descriptor> DescribeLayer(WrittenLayer layer, const LayerNames& names,
                                              std::span<const crypt::Key> recipients);

}  // namespace kapsule::image
