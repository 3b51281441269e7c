#include "core/registry/credentials.h"

#include <cstdlib>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/registry/docker_auth.h"

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

// "https://host/v1/" and "host" are the same key of "auths".
std::string HostOfKey(const std::string& key) {
  std::string host = key;
  for (const std::string_view scheme : {"https://", "http://"}) {
    if (host.starts_with(scheme)) host = host.substr(scheme.size());
  }
  return host.substr(0, host.find('/'));
}

const Json* FindAuth(const Json& config, const std::string& host) {
  const Json* auths = FindMember(config, "auths");
  if (auths == nullptr) return nullptr;
  const std::string server = ServerName(host);
  if (const Json* exact = FindMember(*auths, server)) return exact;
  if (!auths->is_object()) return nullptr;
  for (const auto& [key, value] : auths->items()) {
    if (HostOfKey(key) == HostOfKey(server)) return &value;
  }
  return nullptr;
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

absl::StatusOr<std::optional<Credentials>> FindInFile(const fs::path& file,
                                                      const std::string& host) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxConfigBytes));
  ASSIGN_OR_RETURN(const Json config, ParseJson(text, kMaxConfigBytes));
  ASSIGN_OR_RETURN(const std::string helper, FindHelper(config, host));
  if (!helper.empty()) {
    absl::StatusOr<Credentials> credentials =
        AskCredentialHelper(helper, ServerName(host), kHelperTimeout);
    if (credentials.ok()) return *std::move(credentials);
    if (!absl::IsNotFound(credentials.status())) return credentials.status();
  }
  const Json* auth = FindAuth(config, host);
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

absl::StatusOr<std::optional<Credentials>> FindDockerCredentials(const std::vector<fs::path>& paths,
                                                                 const std::string& host) {
  for (const fs::path& file : ConfigFiles(paths, host)) {
    absl::StatusOr<std::optional<Credentials>> found = FindInFile(file, host);
    std::error_code error;
    if (!found.ok() && !fs::exists(file, error)) continue;
    if (!found.ok()) return Annotate(found.status(), "credentials in " + file.string());
    if (found->has_value()) return found;
  }
  return std::nullopt;
}

}  // namespace kapsule::registry
