#include <cstdint>

#include "core/registry/challenge.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto& challenge : kapsule::registry::ParseChallenges(text)) {
    if (challenge.scheme.empty()) __builtin_trap();
  }
  return 0;
}
