// Names and types of PARAMETER (ollama api/types.go, Options and Runner).
#pragma once

#include <string>
#include <string_view>

#include "core/model/modelfile.h"

namespace kapsule::model {

// InvalidArgument: "unknown parameter 'x'", "invalid int|float|bool value [x]".
absl::StatusOr<ParameterValue> ParseParameter(const std::string& name, const std::string& value);

// Accepted by Ollama with a warning and without effect.
bool IsDeprecatedParameter(std::string_view name);

}  // namespace kapsule::model
