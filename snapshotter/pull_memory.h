// Whom images were pulled as, so that what was not downloaded can be read later:
// kept in memory only.
#pragma once

#include <list>
#include <optional>
#include <string>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "core/base/secret.h"
#include "core/oci/reference.h"
#include "cri/runtime.pb.h"

namespace kapsule::snapshotter {

// In one of three ways; what is not used is empty.
struct PullCredentials {
  std::string place;  // a repository: "docker.io/library/x", "registry.example:5000/a"
  std::string username = {};
  Secret password = {};
  Secret identity_token = {};  // an OAuth2 refresh token
  Secret registry_token = {};  // sent as it is

  PullCredentials Clone() const;
};

// What containerd makes of `auth` for `image`; nullopt where that is nobody, or meant
// for another host. The strings of `auth` are cleansed.
//   InvalidArgument  not base64 of name:password, or longer than 16 KiB; quotes nothing
absl::StatusOr<std::optional<PullCredentials>> TakeCredentials(runtime::v1::AuthConfig& auth,
                                                               const oci::Reference& image);

// Thread-safe. Credentials of a pull that is under way are there at once, since
// its layers are read meanwhile; a pull that succeeds ends all older ones of its
// repository, and one that fails ends its own.
class PullMemory {
 public:
  // Of more, the oldest are forgotten.
  static constexpr size_t kMaxPulls = 256;

  // A pull begins; returns its number. No credentials: as nobody.
  uint64_t Begin(const oci::Reference& image, std::optional<PullCredentials> credentials);
  void End(uint64_t pull, bool succeeded);

  // The newest credentials for the repository of `image` that a pull has succeeded
  // with; those of a pull that is under way, which anybody may begin, where none has.
  std::optional<PullCredentials> Find(const oci::Reference& image);

 private:
  struct Pull {
    uint64_t number;
    std::string host, repository;
    std::optional<PullCredentials> credentials;
    bool succeeded = false;

    bool IsOf(const Pull& other) const {
      return host == other.host && repository == other.repository;
    }
  };

  absl::Mutex mu_;  // list access only
  uint64_t last_ ABSL_GUARDED_BY(mu_) = 0;
  std::list<Pull> pulls_ ABSL_GUARDED_BY(mu_);  // the newest first
};

}  // namespace kapsule::snapshotter
