// Requests to one registry, with its authentication and with retries.
#pragma once

#include <memory>
#include <string>

#include "core/oci/reference.h"
#include "core/registry/authenticator.h"

namespace kapsule::registry {

struct Options {
  std::string username, password;  // in place of Docker's configuration files
  // Speaks plain http, as a registry on a loopback or trusted network does.
  bool insecure = false;
  http::Options http;  // CA file, time limits
  RetryPolicy retry;
};

// Where a registry's API is, and what it takes to talk to it.
struct Endpoint {
  std::string root;  // what Transport::Url() begins with, without a '/' at its end
  CredentialSource credentials;
  http::Headers headers;  // sent to its origin only
  RetryPolicy retry;
  std::shared_ptr<const http::Client> client;
};

// Whether a request may be sent again after a failure that may pass.
enum class Repeat { kYes, kNo };

// Thread-safe.
class Transport {
 public:
  // For `repository` of `host`; empty: for what is of no repository.
  Transport(const std::string& host, const std::string& repository, const Options& options);
  // A token service of plain http is accepted where `endpoint` is of plain http.
  explicit Transport(Endpoint endpoint);

  // `path` (from "/v2/" on, where we were made for a host), as an absolute url.
  std::string Url(const std::string& path) const { return endpoint_.root + path; }
  // Where an answer's Location points. InvalidArgument: there is none, or it
  // leaves https.
  absl::StatusOr<std::string> Location(const http::Response& response) const;

  // Adds Authorization where the url is the registry's; a 401, and a 403 in spite of
  // credentials, is answered with the next credentials until there are no more.
  absl::StatusOr<http::Response> Send(const http::Request& request, const std::string& scope,
                                      Repeat repeat) const;
  absl::StatusOr<http::Response> Download(const http::Request& request, const std::string& scope,
                                          const http::Sink& sink,
                                          const http::HeadCheck& check = nullptr) const;
  // A body of unknown size. Never repeated: the token is renewed before.
  absl::StatusOr<std::unique_ptr<http::Upload>> StartUpload(http::Request request,
                                                            const std::string& scope) const;
  // How often a challenge was answered.
  uint64_t challenges() const { return authenticator_.answers(); }

 private:
  using Run = std::function<absl::StatusOr<http::Response>(const http::Request&)>;
  absl::StatusOr<http::Response> Authorized(const http::Request& request, const std::string& scope,
                                            const Run& run) const;
  bool IsRefusal(const absl::StatusOr<http::Response>& response, const std::string& header) const;

  const Endpoint endpoint_;
  mutable Authenticator authenticator_;
};

}  // namespace kapsule::registry
