// What containerd's snapshot keys say about who asks for what.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/oci/digest.h"

namespace kapsule::snapshotter {

// "<namespace>/<number>/<client key>". Keys of another form (from a client that
// talks to us without containerd) have no namespace and are all client key.
struct SnapshotKey {
  std::string ns = {};
  std::string client = {};
  // Of an unpacking client's key, "extract-<time>-<random> <chainID>". A
  // container cannot be named so: its name holds no space.
  std::optional<oci::Digest> extracted_chain = {};
  // A Kubernetes image volume, which containerd 2 prepares like a container.
  bool image_volume = false;
  // What the image record of the volume points to, a manifest or an index; not
  // set where the key names none.
  std::optional<oci::Digest> volume_image = {};

  static SnapshotKey Parse(std::string_view key);
};

}  // namespace kapsule::snapshotter
