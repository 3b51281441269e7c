#include "core/registry/credentials.h"

#include <cstdlib>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/registry/docker_auth.h"
#include "core/registry/image_place.h"

namespace kapsule::registry {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr std::chrono::milliseconds kHelperTimeout{30'000};
// The name under which Docker Hub's credentials have always been kept.
constexpr char kDockerHubServer[] = "https://index.docker.io/v1/";

std::string ServerName(const std::string& host) {
  return host == "docker.io" ? kDockerHubServer : host;
}

// Whether a key of "auths" is for `repository` of `host`.
bool Fits(const ImagePlace& key, const std::string& host, const std::string& repository) {
  return key.host == host && (key.path.empty() || (repository + "/").starts_with(key.path + "/"));
}

// Of several that fit the longest; its exact name before others like it.
const Json* FindAuth(const Json& config, const std::string& host, const std::string& repository) {
  const Json* auths = FindMember(config, "auths");
  if (auths == nullptr || !auths->is_object()) return nullptr;
  const Json* best = FindMember(*auths, ServerName(host));
  size_t best_size = 0;
  for (const auto& [key, value] : auths->items()) {
    const ImagePlace place = ParseImagePlace(key);
    if (!Fits(place, host, repository)) continue;
    if (best != nullptr && place.path.size() <= best_size) continue;
    best = &value;
    best_size = place.path.size();
  }
  return best;
}

// Empty where no helper is responsible.
absl::StatusOr<std::string> FindHelper(const Json& config, const std::string& host) {
  if (const Json* helpers = FindMember(config, "credHelpers")) {
    ASSIGN_OR_RETURN(const auto helper, OptionalString(*helpers, host));
    if (helper && !helper->empty()) return *helper;
  }
  ASSIGN_OR_RETURN(const auto store, OptionalString(config, "credsStore"));
  return store.value_or("");
}

absl::StatusOr<std::optional<Credentials>> FindInFile(const fs::path& file, const std::string& host,
                                                      const std::string& repository) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxConfigBytes));
  ASSIGN_OR_RETURN(const Json config, ParseJson(text, kMaxConfigBytes));
  ASSIGN_OR_RETURN(const std::string helper, FindHelper(config, host));
  if (!helper.empty()) {
    absl::StatusOr<Credentials> credentials =
        AskCredentialHelper(helper, ServerName(host), kHelperTimeout);
    if (credentials.ok()) return *std::move(credentials);
    if (!absl::IsNotFound(credentials.status())) return credentials.status();
  }
  const Json* auth = FindAuth(config, host, repository);
  if (auth == nullptr) return std::nullopt;
  return ParseDockerAuth(*auth);
}

// The files that speak of `host`, which is no path.
std::vector<fs::path> ConfigFiles(const std::vector<fs::path>& paths, const std::string& host) {
  std::vector<fs::path> files;
  for (const fs::path& path : paths) {
    std::error_code error;
    if (!fs::is_directory(path, error)) {
      files.push_back(path);
      continue;
    }
    if (host.find('/') == std::string::npos && !host.starts_with('.'))
      files.push_back(path / host / "config.json");
    files.push_back(path / "config.json");
  }
  return files;
}

const char* Variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

}  // namespace

std::vector<fs::path> DockerConfigFiles() {
  std::vector<fs::path> files;
  const char* folder = Variable("DOCKER_CONFIG");
  if (folder != nullptr) files.push_back(fs::path(folder) / "config.json");
  if (const char* file = Variable("REGISTRY_AUTH_FILE")) files.emplace_back(file);
  const char* home = Variable("HOME");
  if (folder == nullptr && home != nullptr)
    files.push_back(fs::path(home) / ".docker" / "config.json");
  return files;
}

NextCredentials EachDockerCredentials(const std::vector<fs::path>& paths, const std::string& host,
                                      const std::string& repository) {
  return [files = ConfigFiles(paths, host), next = size_t{0}, host,
          repository]() mutable -> absl::StatusOr<std::optional<Credentials>> {
    while (next < files.size()) {
      const fs::path& file = files[next++];
      absl::StatusOr<std::optional<Credentials>> found = FindInFile(file, host, repository);
      std::error_code error;
      if (!found.ok() && !fs::exists(file, error)) continue;
      if (!found.ok()) return Annotate(found.status(), "credentials in " + file.string());
      if (found->has_value()) return found;
    }
    return std::nullopt;
  };
}

absl::StatusOr<std::optional<Credentials>> FindDockerCredentials(const std::vector<fs::path>& paths,
                                                                 const std::string& host,
                                                                 const std::string& repository) {
  return EachDockerCredentials(paths, host, repository)();
}

}  // namespace kapsule::registry
