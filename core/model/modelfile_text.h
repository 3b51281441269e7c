// The bytes of a Modelfile as UTF-8.
#pragma once

#include <string>
#include <string_view>

#include "core/base/status.h"

namespace kapsule::model {

// UTF-8 without byte order mark. The input is UTF-8, or UTF-16 where a byte
// order mark says so; what is not valid becomes U+FFFD, as in Ollama.
//   InvalidArgument  it holds a NUL: binary, or UTF-16 without a mark
absl::StatusOr<std::string> DecodeText(std::string_view bytes);

}  // namespace kapsule::model
