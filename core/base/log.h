// The program's log: lines on stderr, journald priorities where systemd reads
// them. The only global of the project. Never log a secret, a request body or
// an annotation value.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

#include "core/base/status.h"

namespace kapsule {

// Sets up the default logger: `level` is one of trace, debug, info, warning,
// error. InvalidArgument for another word. Call once, before any thread.
absl::Status InitLog(const std::string& program, const std::string& level);

}  // namespace kapsule

namespace kapsule::log {
using spdlog::debug;
using spdlog::error;
using spdlog::info;
using spdlog::warn;
}  // namespace kapsule::log
