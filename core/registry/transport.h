// Requests to one registry, with its authentication and with retries.
#pragma once

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

// Whether a request may be sent again after a failure that may pass.
enum class Repeat { kYes, kNo };

// Thread-safe.
class Transport {
 public:
  Transport(const std::string& host, const Options& options);

  // `path` from "/v2/" on, as an absolute url.
  std::string Url(const std::string& path) const { return origin_ + path; }
  // Where an answer's Location points. InvalidArgument: there is none, or it
  // leaves https.
  absl::StatusOr<std::string> Location(const http::Response& response) const;

  // Adds Authorization where the url is the registry's; a 401 is answered once.
  absl::StatusOr<http::Response> Send(const http::Request& request, const std::string& scope,
                                      Repeat repeat) const;
  absl::StatusOr<http::Response> Download(const http::Request& request, const std::string& scope,
                                          const http::Sink& sink) const;
  // A body of unknown size. Never repeated: the token is renewed before.
  absl::StatusOr<std::unique_ptr<http::Upload>> StartUpload(http::Request request,
                                                            const std::string& scope) const;

 private:
  using Run = std::function<absl::StatusOr<http::Response>(const http::Request&)>;
  absl::StatusOr<http::Response> Authorized(const http::Request& request, const std::string& scope,
                                            const Run& run) const;

  const std::string origin_;
  const RetryPolicy retry_;
  const http::Client client_;
  mutable Authenticator authenticator_;
};

}  // namespace kapsule::registry
