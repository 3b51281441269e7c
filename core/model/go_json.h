// JSON as Go's encoding/json writes it, so that digests agree with Ollama's.
#pragma once

#include <string>

#include "core/base/json.h"

namespace kapsule::model {

// Members in their order; "<", ">", "&", U+2028 and U+2029 escaped; no line end
// (json.Encoder adds one).
std::string GoText(const Json& json);

// A float32: the shortest digits that read back the same. `value` is finite.
std::string GoFloat(float value);

}  // namespace kapsule::model
