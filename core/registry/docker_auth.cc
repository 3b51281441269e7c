#include "core/registry/docker_auth.h"

#include "core/base/bytes.h"

namespace kapsule::registry {

absl::StatusOr<std::optional<Credentials>> ParseDockerAuth(const Json& auth) {
  Credentials credentials;
  ASSIGN_OR_RETURN(const auto token, OptionalString(auth, "identitytoken"));
  ASSIGN_OR_RETURN(const auto registry_token, OptionalString(auth, "registrytoken"));
  ASSIGN_OR_RETURN(const auto packed, OptionalString(auth, "auth"));
  ASSIGN_OR_RETURN(const auto username, OptionalString(auth, "username"));
  ASSIGN_OR_RETURN(const auto password, OptionalString(auth, "password"));
  credentials.identity_token = token.value_or("");
  credentials.registry_token = registry_token.value_or("");
  credentials.username = username.value_or("");
  credentials.password = password.value_or("");
  if (packed && !packed->empty()) {
    const absl::StatusOr<std::string> pair = DecodeBase64(*packed);
    const size_t colon = pair.ok() ? pair->find(':') : std::string::npos;
    if (colon == std::string::npos)
      return InvalidArgument("\"auth\" is not base64 of name:password");
    credentials.username = pair->substr(0, colon);
    credentials.password = pair->substr(colon + 1);
  }
  if (credentials.username.empty() && credentials.identity_token.empty() &&
      credentials.registry_token.empty())
    return std::nullopt;
  return credentials;
}

}  // namespace kapsule::registry
