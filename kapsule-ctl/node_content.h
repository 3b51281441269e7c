// Blobs of an image on their way into a node's content store.
#pragma once

#include <functional>
#include <string>

#include "core/containerd/client.h"
#include "core/image/progress.h"
#include "core/oci/image_store.h"
#include "core/oci/reference.h"

namespace kapsule::ctl {

// Writes under a lease, and labels each blob with where it came from. The arguments
// outlive it. Used by one thread.
class NodeContent {
 public:
  NodeContent(containerd::Client& client, const std::string& ns, const std::string& lease,
              const oci::Reference& from)
      : client_(client), ns_(ns), lease_(lease), from_(from) {}

  absl::Status Put(const oci::Descriptor& blob, const std::string& bytes,
                   const containerd::Labels& labels);

  // Fetches a blob, unless it is there.
  //   Cancelled  `cancelled` said so
  absl::Status Fetch(const oci::Descriptor& blob, oci::ImageSource& source,
                     image::Progress& progress, const std::function<bool()>& cancelled);

  // Sets those labels that a blob has not.
  absl::Status Label(const oci::Digest& digest, const containerd::Labels& labels);

 private:
  containerd::Client& client_;
  const std::string& ns_;
  const std::string& lease_;
  const oci::Reference& from_;
};

}  // namespace kapsule::ctl
