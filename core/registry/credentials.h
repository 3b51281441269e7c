// Who we are at a registry: as told, else as Docker's configuration files say.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/registry/credential_source.h"

namespace kapsule::registry {

// The files that are read, in this order: $DOCKER_CONFIG/config.json,
// $REGISTRY_AUTH_FILE, and, where DOCKER_CONFIG is not set,
// $HOME/.docker/config.json.
std::vector<std::filesystem::path> DockerConfigFiles();

// The credentials that each file has for `repository` of `host` ("docker.io",
// "127.0.0.1:5000"), in their order. A folder of `paths` stands for its
// <host>/config.json and config.json. Files are read when it is their turn. Within a
// file: credHelpers, credsStore, auths, whose keys may name a part of a registry
// ("host/a/b"; the longest that fits counts). Files that are not there are passed
// over; one that cannot be read is an error that names it. No error holds a credential.
NextCredentials EachDockerCredentials(const std::vector<std::filesystem::path>& paths,
                                      const std::string& host, const std::string& repository);

// The first of them. The error of a file before it is returned.
absl::StatusOr<std::optional<Credentials>> FindDockerCredentials(
    const std::vector<std::filesystem::path>& paths, const std::string& host,
    const std::string& repository = "");

}  // namespace kapsule::registry
