#include "core/registry/provider_config.h"

#include <algorithm>
#include <set>

#include "core/base/printable.h"
#include "core/registry/durations.h"
#include "core/registry/yaml.h"

namespace kapsule::registry {
namespace {

constexpr size_t kMaxConfigBytes = 256 * 1024;
constexpr size_t kMaxProviders = 64, kMaxList = 256;

bool IsVersionOf(const std::string& text, const std::string& group) {
  return text == group + "/v1" || text == group + "/v1beta1" || text == group + "/v1alpha1";
}

// A program's name in its folder.
bool IsFileName(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/ \0", 3)) == std::string::npos;
}

absl::StatusOr<std::vector<std::string>> Strings(const Json& object, const char* name) {
  std::vector<std::string> texts;
  const Json* array = FindMember(object, name);
  if (array == nullptr || array->is_null()) return texts;
  if (!array->is_array() || array->size() > kMaxList)
    return InvalidArgument("{} must be a list of at most {}", name, kMaxList);
  for (const Json& entry : *array) {
    if (!entry.is_string()) return InvalidArgument("{} must hold strings", name);
    texts.push_back(entry.get<std::string>());
    if (texts.back().find('\0') != std::string::npos)
      return InvalidArgument("{} holds a zero byte", name);
  }
  return texts;
}

absl::Status ReadEnvironment(const Json& json, ProviderConfig* provider) {
  const Json* array = FindMember(json, "env");
  if (array == nullptr || array->is_null()) return absl::OkStatus();
  if (!array->is_array() || array->size() > kMaxList)
    return InvalidArgument("env must be a list of at most {}", kMaxList);
  for (const Json& entry : *array) {
    const absl::StatusOr<std::string> name = StringMember(entry, "name");
    const auto value = OptionalString(entry, "value");
    if (!name.ok() || name->empty() || !value.ok())
      return InvalidArgument("env must hold pairs of name and value");
    const std::string text = value->value_or("");
    if (name->find_first_of(std::string_view("=\0", 2)) != std::string::npos ||
        text.find('\0') != std::string::npos)
      return InvalidArgument("env holds a name or value that no environment can hold");
    provider->environment.emplace_back(*name, text);
  }
  return absl::OkStatus();
}

absl::Status ReadProvider(const Json& json, ProviderConfig* provider) {
  ASSIGN_OR_RETURN(provider->api_version, StringMember(json, "apiVersion"));
  if (!IsVersionOf(provider->api_version, "credentialprovider.kubelet.k8s.io"))
    return InvalidArgument("apiVersion is not credentialprovider.kubelet.k8s.io/v1");
  ASSIGN_OR_RETURN(provider->match_images, Strings(json, "matchImages"));
  if (provider->match_images.empty()) return InvalidArgument("matchImages names no image");
  ASSIGN_OR_RETURN(const auto duration, OptionalString(json, "defaultCacheDuration"));
  const absl::StatusOr<std::chrono::milliseconds> parsed = ParseGoDuration(duration.value_or("0"));
  if (!parsed.ok()) return Annotate(parsed.status(), "defaultCacheDuration");
  provider->default_cache_duration = *parsed;
  ASSIGN_OR_RETURN(provider->arguments, Strings(json, "args"));
  if (const Json* tokens = FindMember(json, "tokenAttributes")) {
    ASSIGN_OR_RETURN(const auto required, OptionalString(*tokens, "requireServiceAccount"));
    provider->needs_service_account = required.value_or("false") != "false";
  }
  return ReadEnvironment(json, provider);
}

}  // namespace

absl::StatusOr<std::vector<ProviderConfig>> ParseProviderConfig(const std::string& text) {
  ASSIGN_OR_RETURN(const Json json, ParseYaml(text, kMaxConfigBytes));
  ASSIGN_OR_RETURN(const std::string kind, StringMember(json, "kind"));
  ASSIGN_OR_RETURN(const std::string version, StringMember(json, "apiVersion"));
  if (kind != "CredentialProviderConfig" || !IsVersionOf(version, "kubelet.config.k8s.io"))
    return InvalidArgument("not a CredentialProviderConfig of kubelet.config.k8s.io/v1");
  ASSIGN_OR_RETURN(const Json* list, ArrayMember(json, "providers"));
  if (list->size() > kMaxProviders) return InvalidArgument("more than {} providers", kMaxProviders);
  std::vector<ProviderConfig> providers;
  std::set<std::string> names;
  for (const Json& entry : *list) {
    ProviderConfig provider;
    ASSIGN_OR_RETURN(provider.name, StringMember(entry, "name"));
    if (!IsFileName(provider.name))
      return InvalidArgument("provider \"{}\": no name of a program", Printable(provider.name));
    if (!names.insert(provider.name).second)
      return InvalidArgument("provider \"{}\" twice", Printable(provider.name));
    RETURN_IF_ERROR(Annotate(ReadProvider(entry, &provider),
                             fmt::format("provider \"{}\"", Printable(provider.name))));
    providers.push_back(std::move(provider));
  }
  return providers;
}

}  // namespace kapsule::registry
