// What passes between us and a credential provider plugin.
#include "core/registry/durations.h"
#include "core/registry/image_match.h"
#include "core/registry/provider_config.h"

namespace kapsule::registry {
namespace {

constexpr size_t kMaxResponseBytes = 256 * 1024;
constexpr size_t kMaxAuths = 1000;

absl::StatusOr<ProviderResponse::CacheKey> ParseCacheKey(const std::string& text) {
  if (text == "Image") return ProviderResponse::CacheKey::kImage;
  if (text == "Registry") return ProviderResponse::CacheKey::kRegistry;
  if (text == "Global") return ProviderResponse::CacheKey::kGlobal;
  return InvalidArgument("cacheKeyType is not one of Image, Registry, Global");
}

absl::StatusOr<std::optional<std::chrono::milliseconds>> ParseCacheDuration(const Json& json) {
  ASSIGN_OR_RETURN(const auto text, OptionalString(json, "cacheDuration"));
  if (!text) return std::nullopt;
  const absl::StatusOr<std::chrono::milliseconds> duration = ParseGoDuration(*text);
  if (!duration.ok()) return Annotate(duration.status(), "cacheDuration");
  return *duration;
}

absl::StatusOr<Json> ParseAuths(const Json& json) {
  const Json* auths = FindMember(json, "auth");
  if (auths == nullptr || auths->is_null()) return Json::object();
  if (!auths->is_object() || auths->size() > kMaxAuths)
    return InvalidArgument("auth is not an object of at most {} members", kMaxAuths);
  for (const auto& [pattern, auth] : auths->items()) {
    if (!StringMember(auth, "username").ok() || !StringMember(auth, "password").ok())
      return InvalidArgument("auth holds an entry without username and password");
  }
  return *auths;
}

}  // namespace

std::string ProviderRequest(const ProviderConfig& provider, const std::string& image) {
  return DumpJson({{"kind", "CredentialProviderRequest"},
                   {"apiVersion", provider.api_version},
                   {"image", image}});
}

std::optional<Credentials> ProviderResponse::Find(const std::string& image) const {
  const Json* found = FindAuthForImage(auth, image);
  if (found == nullptr) return std::nullopt;
  return Credentials{StringMember(*found, "username").value_or(""),
                     StringMember(*found, "password").value_or(""), ""};
}

absl::StatusOr<ProviderResponse> ParseProviderResponse(const std::string& text,
                                                       const std::string& api_version) {
  // The parser's own message could quote the answer.
  const absl::StatusOr<Json> json = ParseJson(text, kMaxResponseBytes);
  if (!json.ok()) return InvalidArgument("its answer is not JSON");
  if (StringMember(*json, "kind").value_or("") != "CredentialProviderResponse" ||
      StringMember(*json, "apiVersion").value_or("") != api_version)
    return InvalidArgument("its answer is not a CredentialProviderResponse of {}", api_version);
  ProviderResponse response;
  ASSIGN_OR_RETURN(const std::string cache_key, StringMember(*json, "cacheKeyType"));
  ASSIGN_OR_RETURN(response.cache_key, ParseCacheKey(cache_key));
  ASSIGN_OR_RETURN(response.cache_duration, ParseCacheDuration(*json));
  ASSIGN_OR_RETURN(response.auth, ParseAuths(*json));
  return response;
}

}  // namespace kapsule::registry
