// One entry of "auths" in Docker's configuration files. Private to this folder.
#pragma once

#include <optional>

#include "core/base/json.h"
#include "core/registry/credential_helper.h"

namespace kapsule::registry {

// nullopt: an entry without credentials. Errors quote nothing of it.
absl::StatusOr<std::optional<Credentials>> ParseDockerAuth(const Json& auth);

}  // namespace kapsule::registry
