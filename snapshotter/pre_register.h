// Preparing the Kapsule layers of an image whose puller sends no labels.
#pragma once

#include <absl/time/time.h>

#include <string>

#include "snapshotter/image_finder.h"

namespace kapsule::snapshotter {

// Number of layers from the bottom of an image that are Kapsule layers: with a
// label that names their digest. None where one of them is not what its diff_id
// names: what is not counted is unpacked, and containerd compares diff_ids.
size_t CountKapsuleLayers(const ManifestChain& manifest);

// Finds an image of `ns` whose chain holds `chain_id` as a Kapsule layer and
// prepares its Kapsule layers in containerd, bottom to top, with the labels of
// their annotations: calls that containerd passes on to `snapshotter`, which
// answers that they exist. OK where there is no such image. While containerd
// waits to collect garbage of `snapshotter` it answers none of this: the caller
// is in the way, being called itself, so `deadline` is a matter of seconds.
//   Unavailable, DeadlineExceeded  containerd could not be asked
//   FailedPrecondition             `snapshotter` did not claim a layer
//   Aborted                        instead of these where the image is encrypted,
//                                  and where `chain_id` is an encrypted layer,
//                                  which the puller would unpack: it has to pull again;
//                                  or an image has more layers than can be mounted
absl::Status PreRegisterImage(containerd::Client* client, ImageFinder* finder,
                              const std::string& snapshotter, const std::string& ns,
                              const oci::Digest& chain_id, absl::Time deadline);

}  // namespace kapsule::snapshotter
