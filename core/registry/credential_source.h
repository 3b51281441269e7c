// Several credentials for one registry, one after the other.
#pragma once

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "core/registry/credential_helper.h"

namespace kapsule::registry {

// Each call gives the next credentials, looked up only then; nullopt at the end. An
// error is that of one place where some could have been: the next call goes on after
// it. Not thread-safe.
using NextCredentials = std::function<absl::StatusOr<std::optional<Credentials>>()>;

// Asked for a new row at each challenge and for each token, so that what somebody
// rotates is found; never by a registry that is open to everybody.
using CredentialSource = std::function<NextCredentials()>;

// Those that are known already.
inline NextCredentials TheseCredentials(std::vector<Credentials> credentials) {
  return [row = std::move(credentials),
          next = size_t{0}]() mutable -> absl::StatusOr<std::optional<Credentials>> {
    if (next == row.size()) return std::nullopt;
    return row[next++];
  };
}

}  // namespace kapsule::registry
