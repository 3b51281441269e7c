// kubelet's credential provider plugins, for registries whose passwords are made
// on the spot (those of clouds).
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/registry/provider_config.h"

namespace kapsule::registry {

// Thread-safe. Holds what plugins answered for as long as they say; one question
// about an image is asked once at a time.
class ProviderPlugins {
 public:
  struct Options {
    std::filesystem::path config_file;          // kubelet's CredentialProviderConfig
    std::filesystem::path program_dir;          // where the plugins are
    std::chrono::milliseconds timeout{60'000};  // of one plugin
    std::function<bool()> stopped = nullptr;    // ends waiting for one
  };
  // Errors name the file. Plugins are looked for when they are needed.
  static absl::StatusOr<std::unique_ptr<ProviderPlugins>> Load(Options options);

  // The credentials of the first plugin that is responsible for `image`
  // ("host/repository") and has some; nullopt where none has. Errors, where no
  // plugin has some and one failed, name it and hold nothing of its answer.
  absl::StatusOr<std::optional<Credentials>> Find(const std::string& image);
  // Those of one plugin, from 0 to size() - 1; nullopt where it is not responsible.
  absl::StatusOr<std::optional<Credentials>> FindOf(size_t plugin, const std::string& image);
  size_t size() const { return providers_.size(); }

 private:
  using Clock = std::chrono::steady_clock;
  using CacheKey = std::pair<size_t, std::string>;  // provider, key
  struct Cached {
    ProviderResponse response;
    Clock::time_point end;
  };

  ProviderPlugins(Options options, std::vector<ProviderConfig> providers)
      : options_(std::move(options)), providers_(std::move(providers)) {}
  absl::StatusOr<std::optional<Credentials>> Ask(size_t provider, const std::string& image);
  absl::StatusOr<ProviderResponse> Run(const ProviderConfig& provider,
                                       const std::string& image) const;
  const ProviderResponse* FindCached(size_t provider, const std::string& image) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Keep(size_t provider, const std::string& image, const ProviderResponse& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  const std::vector<ProviderConfig> providers_;

  absl::Mutex mu_;  // never held while a plugin runs
  std::map<CacheKey, Cached> cache_ ABSL_GUARDED_BY(mu_);
  std::set<CacheKey> running_ ABSL_GUARDED_BY(mu_);  // by image
};

}  // namespace kapsule::registry
