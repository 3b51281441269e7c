// Bounded reading of YAML configuration files.
#pragma once

#include <string>

#include "core/base/json.h"

namespace kapsule::registry {

// The first document of `text` (JSON is YAML too) as JSON. Scalars become
// strings, also numbers and booleans; null and empty ones become null.
//   InvalidArgument  longer than `limit` bytes, not YAML, nested deeper than 16,
//                    more than 10000 nodes (an alias counts as what it stands
//                    for), or a map that names a key twice or by no scalar
absl::StatusOr<Json> ParseYaml(const std::string& text, size_t limit);

}  // namespace kapsule::registry
