// Answers a registry's challenges: Basic, and Bearer with tokens of the service
// that the challenge names (distribution's token specification).
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "core/http/client.h"
#include "core/registry/challenge.h"
#include "core/registry/credentials.h"
#include "core/registry/retry.h"

namespace kapsule::registry {

// Asked at each challenge and for each token, so that what somebody rotates is
// found; never by a registry that is open to everybody.
using CredentialSource = std::function<absl::StatusOr<std::optional<Credentials>>()>;

// Thread-safe.
class Authenticator {
 public:
  // `plain_http`: a token service of plain http is accepted.
  Authenticator(const http::Client& client, RetryPolicy retry, CredentialSource source,
                bool plain_http);

  // The Authorization header to send for `scope` ("repository:a/b:pull"), as
  // far as it is known; empty before the first challenge. A token that is about
  // to expire is renewed. `request` is the one that it is for: its deadline and
  // its stopped() hold for the token too.
  absl::StatusOr<std::string> Known(const std::string& scope, const http::Request& request);

  // The header that answers the challenges of a 401 for `request`, which was sent
  // with `refused`; empty where we have nothing to answer with.
  //   Unauthenticated  the token service refuses us
  absl::StatusOr<std::string> Answer(const http::Headers& headers, const std::string& scope,
                                     const std::string& refused, const http::Request& request);

  // How many challenges were answered.
  uint64_t answers() const { return answers_; }

 private:
  struct Token {
    std::string header;
    std::chrono::steady_clock::time_point renew;
  };
  absl::StatusOr<std::string> Respond(const Challenge& challenge, const std::string& scope,
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
