// The key-value pairs of a GGUF header, as far as Kapsule uses them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "core/model/gguf_cursor.h"

namespace kapsule::model {

struct GgufMetadata {
  std::map<std::string, uint64_t> numbers;  // whole and not negative
  std::map<std::string, std::string> strings;
  bool has_chat_template = false;

  std::string String(const std::string& key) const;  // empty where missing
  std::optional<uint64_t> Number(const std::string& key) const;
};

// Reads `count` pairs. InvalidArgument: a key twice, a type that GGUF does not
// have, a value beyond a limit, or the header ends.
absl::StatusOr<GgufMetadata> ReadGgufMetadata(GgufCursor& in, uint64_t count);

}  // namespace kapsule::model
