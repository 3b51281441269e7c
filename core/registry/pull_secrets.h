// Kubernetes' pull secrets, as files of a mounted volume.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/registry/credential_source.h"

namespace kapsule::registry {

// The credentials that each secret has for `host`/`repository` (docker.io:
// "docker.io"): those of its most specific key. Each of `paths` is
//   a file    of type kubernetes.io/dockerconfigjson or, named .dockercfg, dockercfg
//   a folder  the secrets in it (.dockerconfigjson, .dockercfg, *.json), then those
//             of its folders; names that begin with ".." are Kubernetes' own
// What is not there is passed over; a file that cannot be read is an error that
// names it and holds no credential. Helper programs that a secret names are never
// run.
NextCredentials EachPullSecret(const std::vector<std::filesystem::path>& paths,
                               const std::string& host, const std::string& repository);

// The first of them. The error of a secret before it is returned.
absl::StatusOr<std::optional<Credentials>> FindPullSecret(
    const std::vector<std::filesystem::path>& paths, const std::string& host,
    const std::string& repository);

}  // namespace kapsule::registry
