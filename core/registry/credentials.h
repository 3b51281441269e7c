// Who we are at a registry: as told, else as Docker's configuration files say.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/registry/credential_helper.h"

namespace kapsule::registry {

// The files that are read, in this order: $DOCKER_CONFIG/config.json,
// $REGISTRY_AUTH_FILE, and, where DOCKER_CONFIG is not set,
// $HOME/.docker/config.json.
std::vector<std::filesystem::path> DockerConfigFiles();

// The credentials of the first file that has some for `host` ("docker.io",
// "127.0.0.1:5000"); nullopt where none has. A folder of `paths` stands for its
// <host>/config.json and config.json. Files are read at each call. Within a file:
// credHelpers, credsStore, auths. Files that are not there are passed over; one
// that cannot be read is an error that names it. No error holds a credential.
absl::StatusOr<std::optional<Credentials>> FindDockerCredentials(
    const std::vector<std::filesystem::path>& paths, const std::string& host);

}  // namespace kapsule::registry
