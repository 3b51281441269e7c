// Sizes and times for people.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/status.h"

namespace kapsule::ctl {

std::string FormatBytes(uint64_t bytes);      // "1.5 GiB"
std::string FormatSeconds(uint64_t seconds);  // "7s", "3m20s", "2h05m"

// "64KiB", "16KiB", "1MiB" or a number of bytes; the rules for a chunk size are
// checked too (a power of two, 4 KiB to 1 MiB).
absl::StatusOr<uint32_t> ParseChunkSize(const std::string& text);

}  // namespace kapsule::ctl
