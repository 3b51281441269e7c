// Durations as Go programs write them: "1h30m", "0.5s", "0".
#pragma once

#include <chrono>
#include <string_view>

#include "core/base/status.h"

namespace kapsule::registry {

// InvalidArgument: another text, or more than 100 years.
absl::StatusOr<std::chrono::milliseconds> ParseGoDuration(std::string_view text);

}  // namespace kapsule::registry
