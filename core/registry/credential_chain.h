// Who we are at a registry, from every place that a node has for it.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/registry/credential_source.h"
#include "core/registry/provider_plugins.h"

namespace kapsule::registry {

struct ToldCredentials {
  // "registry.example:5000/acme/tiny" is that repository and no other, "docker.io"
  // all of that host.
  std::string image;
  Credentials credentials;
};

struct CredentialChain {
  std::vector<ToldCredentials> told;                  // by whom the image is pulled for
  std::shared_ptr<ProviderPlugins> plugins;           // may be null
  std::vector<std::filesystem::path> pull_secrets;    // as of EachPullSecret()
  std::vector<std::filesystem::path> docker_configs;  // as of EachDockerCredentials()
};

// All that these places have for `host`/`repository`, in the order of the members; of
// what was told the repository's own before its host's. Plugins are run and files are
// read when it is their turn, so what somebody rotates is found. Errors hold no
// credential.
NextCredentials FindCredentials(const CredentialChain& chain, const std::string& host,
                                const std::string& repository);

}  // namespace kapsule::registry
