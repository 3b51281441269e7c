// The labels that containerd's own client gives to the blobs of an image: they keep
// from garbage collection what a blob refers to, and tell where it came from.
#pragma once

#include <string>
#include <vector>

#include "core/containerd/client.h"
#include "core/oci/manifest.h"
#include "core/oci/reference.h"

namespace kapsule::ctl {

containerd::Labels LabelsOfManifest(const oci::Manifest& manifest);
containerd::Labels LabelsOfIndex(const oci::Index& index);

// Adds the label of `from` to `labels`, which a blob has. containerd leaves out the
// port, and so do we: it would not find a label with one.
void AddSource(const oci::Reference& from, containerd::Labels* labels);

// What containerd sends to a snapshotter about a layer: its annotations that are
// for snapshotters, and the chain that it makes.
containerd::Labels SnapshotLabels(const oci::Descriptor& layer, const oci::Digest& chain_id);

}  // namespace kapsule::ctl
