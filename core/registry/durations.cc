#include "core/registry/durations.h"

#include <algorithm>
#include <charconv>
#include <utility>

namespace kapsule::registry {
namespace {

constexpr double kMaxMilliseconds = 100.0 * 365 * 24 * 3600 * 1000;

// The longer of two names that begin alike stands first.
constexpr std::pair<std::string_view, double> kUnits[] = {
    {"ns", 1e-6}, {"us", 1e-3}, {"\u00b5s", 1e-3}, {"ms", 1}, {"s", 1e3}, {"m", 6e4}, {"h", 3.6e6}};

// Takes "1.5h" off the front of `text`, in milliseconds.
bool TakePart(std::string_view* text, double* milliseconds) {
  const size_t digits = std::min(text->find_first_not_of("0123456789."), text->size());
  double number = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + digits, number);
  if (error != std::errc() || end != text->data() + digits) return false;
  text->remove_prefix(digits);
  for (const auto& [name, factor] : kUnits) {
    if (!text->starts_with(name)) continue;
    text->remove_prefix(name.size());
    *milliseconds += number * factor;
    return *milliseconds <= kMaxMilliseconds;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::chrono::milliseconds> ParseGoDuration(std::string_view text) {
  if (text == "0") return std::chrono::milliseconds(0);
  double milliseconds = 0;
  bool good = !text.empty() && text.size() <= 64;
  for (std::string_view rest = text; good && !rest.empty();) good = TakePart(&rest, &milliseconds);
  if (!good) return InvalidArgument("no duration, as \"1h30m\"");
  return std::chrono::milliseconds(static_cast<int64_t>(milliseconds));
}

}  // namespace kapsule::registry
