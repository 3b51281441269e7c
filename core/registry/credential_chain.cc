#include "core/registry/credential_chain.h"

#include "core/registry/credentials.h"
#include "core/registry/image_place.h"
#include "core/registry/pull_secrets.h"

namespace kapsule::registry {
namespace {

std::vector<Credentials> Told(const std::vector<ToldCredentials>& told, const std::string& host,
                              const std::string& repository) {
  std::vector<Credentials> of_repository, of_host;
  for (const ToldCredentials& entry : told) {
    const ImagePlace place = SplitImagePlace(entry.image);
    if (place.host != host) continue;
    if (place.path == repository) of_repository.push_back(entry.credentials);
    if (place.path.empty()) of_host.push_back(entry.credentials);
  }
  of_repository.insert(of_repository.end(), of_host.begin(), of_host.end());
  return of_repository;
}

NextCredentials EachPlugin(const std::shared_ptr<ProviderPlugins>& plugins,
                           const std::string& image) {
  if (plugins == nullptr) return TheseCredentials({});
  return
      [plugins, image, next = size_t{0}]() mutable -> absl::StatusOr<std::optional<Credentials>> {
        while (next < plugins->size()) {
          absl::StatusOr<std::optional<Credentials>> found = plugins->FindOf(next++, image);
          if (!found.ok() || found->has_value()) return found;
        }
        return std::nullopt;
      };
}

}  // namespace

NextCredentials FindCredentials(const CredentialChain& chain, const std::string& host,
                                const std::string& repository) {
  std::vector<NextCredentials> rows = {
      TheseCredentials(Told(chain.told, host, repository)),
      EachPlugin(chain.plugins, host + "/" + repository),
      EachPullSecret(chain.pull_secrets, host, repository),
      EachDockerCredentials(chain.docker_configs, host, repository),
  };
  return [rows = std::move(rows),
          row = size_t{0}]() mutable -> absl::StatusOr<std::optional<Credentials>> {
    for (; row < rows.size(); ++row) {
      absl::StatusOr<std::optional<Credentials>> found = rows[row]();
      if (!found.ok() || found->has_value()) return found;
    }
    return std::nullopt;
  };
}

}  // namespace kapsule::registry
