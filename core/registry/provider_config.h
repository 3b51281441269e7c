// kubelet's CredentialProviderConfig, and what its plugins answer
// (kubelet.config.k8s.io/v1, credentialprovider.kubelet.k8s.io/v1).
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/registry/credential_helper.h"

namespace kapsule::registry {

struct ProviderConfig {
  std::string name;         // the program's, no path
  std::string api_version;  // that it speaks
  std::vector<std::string> match_images;
  std::chrono::milliseconds default_cache_duration{0};
  std::vector<std::string> arguments;
  std::vector<std::pair<std::string, std::string>> environment;
  // It wants the token of a pod's service account, which nobody here has.
  bool needs_service_account = false;
};

// The text of a CredentialProviderConfig in YAML or JSON. InvalidArgument names
// the provider and the key that is wrong. Keys that we do not know are passed over.
absl::StatusOr<std::vector<ProviderConfig>> ParseProviderConfig(const std::string& text);

// The CredentialProviderRequest for `image`.
std::string ProviderRequest(const ProviderConfig& provider, const std::string& image);

struct ProviderResponse {
  enum class CacheKey { kImage, kRegistry, kGlobal } cache_key = CacheKey::kImage;
  std::optional<std::chrono::milliseconds> cache_duration;
  Json auth;  // image pattern → {username, password}, all checked

  // Those of the most specific pattern.
  std::optional<Credentials> Find(const std::string& image) const;
};

// What a plugin wrote. InvalidArgument says what is wrong, and quotes no value.
absl::StatusOr<ProviderResponse> ParseProviderResponse(const std::string& text,
                                                       const std::string& api_version);

}  // namespace kapsule::registry
