// The JSON header of a safetensors file, read as a stream: a document tree of
// 100 MB of JSON would take gigabytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/base/status.h"

namespace kapsule::model {

struct SafetensorsTensor {
  std::string_view dtype;       // a constant
  uint64_t elements = 0;        // product of the shape
  uint64_t begin = 0, end = 0;  // in the data; end - begin = elements x size of the type
};

// In the header's order. InvalidArgument says which tensor and rule.
absl::StatusOr<std::vector<SafetensorsTensor>> ParseSafetensorsHeader(std::string_view json);

}  // namespace kapsule::model
