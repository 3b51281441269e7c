#include "core/registry/credential_chain.h"

#include <functional>

#include "core/registry/credentials.h"
#include "core/registry/pull_secrets.h"

namespace kapsule::registry {
namespace {

// "https://index.docker.io/v1/" as "docker.io": CRI hands on what people wrote.
std::string HostName(std::string text) {
  for (const std::string_view scheme : {"https://", "http://"}) {
    if (text.starts_with(scheme)) text = text.substr(scheme.size());
  }
  text = text.substr(0, text.find('/'));
  return text == "index.docker.io" || text == "registry-1.docker.io" ? "docker.io" : text;
}

}  // namespace

absl::StatusOr<std::optional<Credentials>> FindCredentials(const CredentialChain& chain,
                                                           const std::string& host,
                                                           const std::string& repository) {
  using Found = absl::StatusOr<std::optional<Credentials>>;
  for (const HostCredentials& told : chain.told) {
    if (HostName(told.host) == host) return told.credentials;
  }
  const std::function<Found()> places[] = {
      [&]() -> Found {
        if (chain.plugins == nullptr) return std::nullopt;
        return chain.plugins->Find(host + "/" + repository);
      },
      [&] { return FindPullSecret(chain.pull_secrets, host, repository); },
      [&] { return FindDockerCredentials(chain.docker_configs, host); },
  };
  absl::Status failed;
  for (const auto& place : places) {
    Found found = place();
    if (found.ok() && found->has_value()) return found;
    if (!found.ok() && failed.ok()) failed = found.status();
  }
  RETURN_IF_ERROR(failed);
  return std::nullopt;
}

}  // namespace kapsule::registry
