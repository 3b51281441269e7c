#include "core/registry/provider_plugins.h"

#include <algorithm>

#include "core/base/file.h"
#include "core/registry/image_match.h"
#include "core/registry/program.h"

namespace kapsule::registry {
namespace {

constexpr uint64_t kMaxConfigBytes = 256 * 1024;
constexpr size_t kMaxAnswerBytes = 256 * 1024;
constexpr size_t kMaxCached = 1024;

// Image names do not begin with '/': no key can be another's.
constexpr char kGlobalKey[] = "/";

std::string RegistryKey(const std::string& image) { return image.substr(0, image.find('/')) + "/"; }

bool IsResponsible(const ProviderConfig& provider, const std::string& image) {
  return !provider.needs_service_account &&
         std::any_of(provider.match_images.begin(), provider.match_images.end(),
                     [&](const std::string& pattern) { return MatchesImage(pattern, image); });
}

}  // namespace

absl::StatusOr<std::unique_ptr<ProviderPlugins>> ProviderPlugins::Load(Options options) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(options.config_file, kMaxConfigBytes));
  absl::StatusOr<std::vector<ProviderConfig>> providers = ParseProviderConfig(text);
  if (!providers.ok()) return Annotate(providers.status(), options.config_file.string());
  return std::unique_ptr<ProviderPlugins>(
      new ProviderPlugins(std::move(options), *std::move(providers)));
}

absl::StatusOr<std::optional<Credentials>> ProviderPlugins::Find(const std::string& image) {
  absl::Status failed;
  for (size_t i = 0; i < size(); ++i) {
    absl::StatusOr<std::optional<Credentials>> found = FindOf(i, image);
    if (found.ok() && found->has_value()) return found;
    if (!found.ok() && failed.ok()) failed = found.status();
  }
  RETURN_IF_ERROR(failed);
  return std::nullopt;
}

absl::StatusOr<std::optional<Credentials>> ProviderPlugins::FindOf(size_t plugin,
                                                                   const std::string& image) {
  if (!IsResponsible(providers_[plugin], image)) return std::nullopt;
  absl::StatusOr<std::optional<Credentials>> found = Ask(plugin, image);
  if (!found.ok())
    return Annotate(found.status(), "credential provider " + providers_[plugin].name);
  return found;
}

absl::StatusOr<std::optional<Credentials>> ProviderPlugins::Ask(size_t provider,
                                                                const std::string& image) {
  const CacheKey question(provider, image);
  {
    absl::MutexLock lock(&mu_);
    const auto free = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return !running_.contains(question);
    };
    mu_.Await(absl::Condition(&free));
    if (const ProviderResponse* cached = FindCached(provider, image)) return cached->Find(image);
    running_.insert(question);
  }
  const absl::StatusOr<ProviderResponse> response = Run(providers_[provider], image);
  absl::MutexLock lock(&mu_);
  running_.erase(question);
  RETURN_IF_ERROR(response.status());
  Keep(provider, image, *response);
  return response->Find(image);
}

absl::StatusOr<ProviderResponse> ProviderPlugins::Run(const ProviderConfig& provider,
                                                      const std::string& image) const {
  ASSIGN_OR_RETURN(const ProgramOutput output,
                   RunProgram({.file = options_.program_dir / provider.name,
                               .arguments = provider.arguments,
                               .environment = provider.environment,
                               .timeout = options_.timeout,
                               .max_output = kMaxAnswerBytes,
                               .stopped = options_.stopped},
                              ProviderRequest(provider, image)));
  if (!output.succeeded) return FailedPrecondition("it failed");
  return ParseProviderResponse(output.text, provider.api_version);
}

const ProviderResponse* ProviderPlugins::FindCached(size_t provider,
                                                    const std::string& image) const {
  for (const std::string& key : {image, RegistryKey(image), std::string(kGlobalKey)}) {
    const auto cached = cache_.find({provider, key});
    if (cached != cache_.end() && Clock::now() < cached->second.end)
      return &cached->second.response;
  }
  return nullptr;
}

void ProviderPlugins::Keep(size_t provider, const std::string& image,
                           const ProviderResponse& response) {
  const auto duration =
      response.cache_duration.value_or(providers_[provider].default_cache_duration);
  if (duration.count() <= 0) return;
  const Clock::time_point now = Clock::now();
  std::erase_if(cache_, [&](const auto& entry) { return entry.second.end <= now; });
  if (cache_.size() >= kMaxCached) cache_.erase(cache_.begin());
  const std::string key = response.cache_key == ProviderResponse::CacheKey::kImage ? image
                          : response.cache_key == ProviderResponse::CacheKey::kRegistry
                              ? RegistryKey(image)
                              : kGlobalKey;
  cache_[{provider, key}] = {response, now + duration};
}

}  // namespace kapsule::registry
