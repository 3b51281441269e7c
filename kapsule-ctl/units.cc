#include "kapsule-ctl/units.h"

#include <bit>
#include <charconv>

namespace kapsule::ctl {

std::string FormatBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  // 1023.95 would print as 1024.0.
  for (; value >= 1023.95 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string FormatSeconds(uint64_t seconds) {
  if (seconds < 60) return fmt::format("{}s", seconds);
  if (seconds < 3600) return fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
  return fmt::format("{}h{:02}m", seconds / 3600, seconds / 60 % 60);
}

absl::StatusOr<uint32_t> ParseChunkSize(const std::string& text) {
  uint32_t number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  const std::string unit(rest, static_cast<size_t>(end - rest));
  uint64_t size = number;
  if (unit == "KiB")
    size <<= 10;
  else if (unit == "MiB")
    size <<= 20;
  else if (!unit.empty())
    size = 0;
  if (error != std::errc() || size < 4096 || size > 1 << 20 || !std::has_single_bit(size))
    return InvalidArgument("\"{}\" is not a chunk size: a power of two from 4KiB to 1MiB", text);
  return static_cast<uint32_t>(size);
}

}  // namespace kapsule::ctl
