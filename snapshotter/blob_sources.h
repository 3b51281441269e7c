// Which registries have the blobs of an image, as far as containerd knows.
#pragma once

#include <absl/time/time.h>

#include <string>
#include <vector>

#include "core/containerd/client.h"
#include "core/oci/digest.h"

namespace kapsule::snapshotter {

// References "host/repository@digest" of the manifest, one a repository: that of the
// image record's `name` first, where it has one; then those that containerd noted on
// the manifest when it was pulled (containerd.io/distribution.source.HOST labels, whose
// HOST lacks the port).
// Names that are no references, as CRI has, and an error of containerd give none.
std::vector<std::string> SourcesOf(containerd::Client& client, const std::string& ns,
                                   const oci::Digest& manifest, const std::string& name,
                                   absl::Time deadline);

}  // namespace kapsule::snapshotter
