// Telling Kapsule's layers from others.
#pragma once

#include "core/oci/manifest.h"

namespace kapsule::oci {

// The label of a Kapsule layer, where that says of the blob what its descriptor
// says, and the bytes can be those that the diff_id means. Of an encrypted layer
// only its key tells; a plain one is the tar that its diff_id names, or anybody
// could have her own bytes stand for somebody else's chain. Whether the image's
// config names that diff_id is left to the caller.
//   NotFound         no Kapsule layer
//   InvalidArgument  a label that is malformed or of something else
absl::StatusOr<LayerLabel> FindLayerLabel(const Descriptor& layer);

}  // namespace kapsule::oci
