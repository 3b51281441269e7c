// A blob that is read from its registry, block by block.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/oci/annotations.h"

namespace kapsule::snapshotter {

struct RemoteBlob {
  oci::Digest digest;
  uint64_t size = 0;
  oci::IndexRef index;
  std::vector<std::string> images;  // that have it (blob_sources.h)
};

}  // namespace kapsule::snapshotter
