// Answers a registry's challenges: Basic, and Bearer with tokens of the service
// that the challenge names (distribution's token specification).
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <atomic>
#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/http/client.h"
#include "core/registry/challenge.h"
#include "core/registry/credential_source.h"
#include "core/registry/retry.h"

namespace kapsule::registry {

// Credentials that the registry or its token service refuses (401, 403) are followed
// by the next ones, and the last of them by nobody's. Thread-safe.
class Authenticator {
 public:
  // How far the answers for one request have come. Not thread-safe.
  struct Tried {
    NextCredentials next = nullptr;        // null: none was looked for yet
    std::vector<Credentials> credentials;  // that were made use of
    std::vector<std::string> refused;      // headers
    bool anonymous = false;                // nobody's were tried: nothing is left
    absl::Status failed;                   // why the first of them came to nothing
  };

  // `plain_http`: a token service of plain http is accepted.
  Authenticator(const http::Client& client, RetryPolicy retry, CredentialSource source,
                bool plain_http);

  // The Authorization header to send for `scope` ("repository:a/b:pull"), as
  // far as it is known; empty before the first challenge. A token that is about
  // to expire is renewed. `request` is the one that it is for: its deadline and
  // its stopped() hold for the token too.
  //   Unauthenticated, PermissionDenied  the token service refuses us
  //   others                             of the token service, or of a place of credentials
  absl::StatusOr<std::string> Known(const std::string& scope, const http::Request& request,
                                    Tried& tried);

  // The header to send after `refused`, by the challenges of a 401 for `request` or,
  // where `headers` have none, by the last ones; empty where we have nothing more.
  // Errors as of Known().
  absl::StatusOr<std::string> Answer(const http::Headers& headers, const std::string& scope,
                                     const std::string& refused, const http::Request& request,
                                     Tried& tried);

  // How many challenges were answered.
  uint64_t answers() const { return answers_; }

 private:
  struct Token {
    std::string header;
    std::chrono::steady_clock::time_point renew;
  };
  absl::StatusOr<std::string> Respond(const Challenge& challenge, const std::string& scope,
                                      const http::Request& request, Tried& tried);
  std::optional<Credentials> NextOf(Tried& tried) const;
  absl::StatusOr<std::string> HeaderFor(const Challenge& challenge, const std::string& scope,
                                        const std::optional<Credentials>& credentials,
                                        const http::Request& request);
  absl::StatusOr<std::string> FetchToken(const Challenge& challenge, const std::string& scope,
                                         const std::optional<Credentials>& credentials,
                                         const http::Request& request);
  absl::StatusOr<http::Request> TokenRequest(const Challenge& challenge, const std::string& scope,
                                             const std::optional<Credentials>& credentials) const;

  const http::Client& client_;
  const RetryPolicy retry_;
  const CredentialSource source_;
  const bool plain_http_;
  std::atomic<uint64_t> answers_ = 0;

  absl::Mutex mu_;  // never held across a request or a helper
  std::optional<Challenge> challenge_ ABSL_GUARDED_BY(mu_);   // the last we answered
  std::map<std::string, Token> tokens_ ABSL_GUARDED_BY(mu_);  // by scope, also of Basic
};

}  // namespace kapsule::registry
