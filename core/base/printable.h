// Text from outside in messages: bounded, and unable to steer a terminal or log.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kapsule {

// For people: at most `limit` bytes of UTF-8, control characters as '?', "…" where
// something was cut.
std::string Printable(std::string_view text, size_t limit = 200);

// At most `limit` bytes, everything but printable ASCII as '?'.
std::string PrintableAscii(std::string_view text, size_t limit);

}  // namespace kapsule
