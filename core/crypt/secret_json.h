// Reading a small JSON object that holds secrets. A general parser would leave
// copies of every string on the heap; this one only points into the text.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "core/base/status.h"

namespace kapsule::crypt {

struct JsonMember {
  std::string_view name;   // between its quotes, escapes as written
  std::string_view value;  // its text, without surrounding space
};

// The members of the object `json`, in order; both views point into it.
//   InvalidArgument  longer than 16 KiB, more than 64 members, nested deeper
//                    than 16, not one JSON object, or a name that stands twice
// Numbers are checked for their characters only. Errors never quote the text.
absl::StatusOr<std::vector<JsonMember>> ScanJsonObject(std::string_view json);

// The value of `name`; nullopt where it is missing or null.
std::optional<std::string_view> FindValue(const std::vector<JsonMember>& members,
                                          std::string_view name);

// The text of a JSON string value. InvalidArgument: another type, or a string
// with escapes (base64 has none).
absl::StatusOr<std::string_view> PlainString(std::string_view value);

}  // namespace kapsule::crypt
