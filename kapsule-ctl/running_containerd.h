// What the containerd that listens on a socket says of itself.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "core/base/status.h"

namespace kapsule::ctl {

// Unavailable: nobody answers.
absl::StatusOr<std::string> VersionOfRunning(const std::string& address);

// What it was started with as --config; nullopt where that is not known.
std::optional<std::filesystem::path> ConfigOfRunning(const std::string& address);

}  // namespace kapsule::ctl
