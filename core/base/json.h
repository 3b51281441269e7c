// Bounded reading of JSON from outside. nlohmann's own exceptions never pass
// this header: parse, then ask for typed members.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "core/base/status.h"

namespace kapsule {

// Keeps the order of members, so that what we write again stays comparable.
using Json = nlohmann::ordered_json;

// InvalidArgument: longer than `limit` bytes, nested deeper than 64, not JSON,
// or an object that names a member twice.
absl::StatusOr<Json> ParseJson(std::string_view text, size_t limit);

// The text of `json`, without spaces; bytes that are not UTF-8 become U+FFFD.
std::string DumpJson(const Json& json);

// Members of an object. The plain forms give InvalidArgument where the member
// is missing or of another type; the Optional forms give nullopt where it is
// missing or null.
absl::StatusOr<std::string> StringMember(const Json& object, std::string_view name);
absl::StatusOr<uint64_t> UintMember(const Json& object, std::string_view name);
absl::StatusOr<const Json*> ObjectMember(const Json& object, std::string_view name);
absl::StatusOr<const Json*> ArrayMember(const Json& object, std::string_view name);
absl::StatusOr<std::optional<std::string>> OptionalString(const Json& object,
                                                          std::string_view name);
// Null where missing.
const Json* FindMember(const Json& object, std::string_view name);

}  // namespace kapsule
