// Who we are at a registry, from every place that a node has for it.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/registry/provider_plugins.h"

namespace kapsule::registry {

struct HostCredentials {
  // "docker.io", "registry.example:5000"; scheme and path are passed over.
  std::string host;
  Credentials credentials;
};

struct CredentialChain {
  std::vector<HostCredentials> told;                  // by whom the image is pulled for
  std::shared_ptr<ProviderPlugins> plugins;           // may be null
  std::vector<std::filesystem::path> pull_secrets;    // as of FindPullSecret()
  std::vector<std::filesystem::path> docker_configs;  // as of FindDockerCredentials()
};

// The first that one of these places has for `host`/`repository`, in the order of
// the members; nullopt where none has. Files are read at each call, so what
// somebody rotates is found. A place that fails is passed over; its error, which
// holds no credential, is returned where no other place has any.
absl::StatusOr<std::optional<Credentials>> FindCredentials(const CredentialChain& chain,
                                                           const std::string& host,
                                                           const std::string& repository);

}  // namespace kapsule::registry
