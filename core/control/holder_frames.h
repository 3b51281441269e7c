// The bytes between Holder (holder_wire.h) and HolderStore (holder_store.h).
//   request  operation, length of the name, name; List: the name is the prefix,
//            and what follows is the last name that the client has
//   answer   absl::StatusCode, 1 where List has more to tell; List: length and
//            bytes of each name
// Descriptors: Put's request and Get's answer carry those of the name; every
// request ends with the socket that the answer goes to.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/control/holder_wire.h"

namespace kapsule::control {

enum class HolderOperation : uint8_t { kPut = 1, kGet = 2, kDrop = 3, kList = 4, kQuit = 5 };

inline constexpr size_t kHolderRequestHeader = 2;
inline constexpr size_t kHolderAnswerHeader = 2;
inline constexpr size_t kMaxHolderRequest = kHolderRequestHeader + 2 * kMaxHeldName;
inline constexpr size_t kMaxHolderAnswer = 32 * 1024;

// Names are also made into systemd's descriptor names, which know no ':'.
inline bool IsHeldText(std::string_view text) {
  constexpr std::string_view kAllowed = "abcdefghijklmnopqrstuvwxyz0123456789/-_";
  return text.size() <= kMaxHeldName && text.find_first_not_of(kAllowed) == std::string_view::npos;
}
inline bool IsHeldName(std::string_view name) { return !name.empty() && IsHeldText(name); }

}  // namespace kapsule::control
