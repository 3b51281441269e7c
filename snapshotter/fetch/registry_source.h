// Blobs in registries and their mirrors.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/registry/blob_ranges.h"
#include "core/registry/credential_chain.h"
#include "snapshotter/fetch/range_source.h"

namespace kapsule::fetch {

struct RegistryOptions {
  std::filesystem::path hosts_dir;                     // containerd's "certs.d"; may be empty
  std::vector<std::filesystem::path> pull_secrets;     // as of registry::FindPullSecret()
  std::vector<std::filesystem::path> docker_configs;   // as of FindDockerCredentials()
  std::shared_ptr<registry::ProviderPlugins> plugins;  // may be null
};

// Makes sources; those of one registry share its connections. Thread-safe; lives
// as long as what Open() gave.
class RegistrySources {
 public:
  explicit RegistrySources(RegistryOptions options) : options_(std::move(options)) {}

  // A reference that cannot be used is passed over where another one can.
  //   InvalidArgument  none can: what is wrong with the last
  absl::StatusOr<std::shared_ptr<RangeSource>> Open(const Origin& origin);

 private:
  using Hosts = std::vector<registry::ConnectedHost>;
  struct Known {
    Hosts hosts;
    absl::Time read_at;
  };
  absl::StatusOr<Hosts> HostsOf(const std::string& registry) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::unique_ptr<registry::BlobRanges>> OpenOne(const Origin& origin,
                                                                const std::string& reference);

  const RegistryOptions options_;
  absl::Mutex mu_;
  std::map<std::string, Known> known_ ABSL_GUARDED_BY(mu_);  // by registry
};

}  // namespace kapsule::fetch
