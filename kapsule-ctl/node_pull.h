// Pulling an image into a node's containerd without fetching its model: what a
// client that sends no labels would download in full.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/image/progress.h"
#include "core/oci/image_store.h"
#include "core/oci/reference.h"

namespace kapsule::ctl {

struct NodePullOptions {
  std::filesystem::path containerd;  // its socket
  std::string ns, snapshotter;
  std::function<bool()> cancelled;
};

struct PulledLayer {
  enum class State {
    kPresent,     // its snapshot was there already
    kRegistered,  // the snapshotter serves it as it is; nothing was fetched
    kUnpacked,    // an ordinary layer: fetched and unpacked
  };
  oci::Descriptor descriptor;
  oci::Digest chain_id;
  State state = State::kPresent;
};

struct PulledImage {
  oci::Digest digest;  // that the image's name points to: of an index or a manifest
  std::vector<PulledLayer> layers;
  bool changed = false;  // anything but labels
};

// Puts manifest and config into the content store, makes the image's record under
// the name `reference`, and a snapshot of each layer. Until all is done a lease keeps
// it. What fails or is cancelled leaves no image without its blobs; after Cancelled,
// Unavailable and DeadlineExceeded the lease stays for a day, so that pulling again
// fetches no layer twice. Errors of the source and of containerd, and:
//   FailedPrecondition  `snapshotter` is none of Kapsule's, or has a layer of this
//                       chain as another blob
//   Unimplemented       no container image, or an encrypted layer that is not
//                       Kapsule's
absl::StatusOr<PulledImage> PullToNode(oci::ImageSource& source, const oci::Reference& reference,
                                       const NodePullOptions& options, image::Progress& progress);

}  // namespace kapsule::ctl
