// docker-credential-helpers: programs that keep passwords in a key ring.
#pragma once

#include <chrono>
#include <string>

#include "core/base/status.h"

namespace kapsule::registry {

struct Credentials {
  std::string username;
  std::string password;
  std::string identity_token;  // an OAuth2 refresh token, in place of the others
  // Sent to the registry as it is, in place of a token of its token service.
  std::string registry_token = "";

  bool operator==(const Credentials&) const = default;
};

// Runs "docker-credential-<helper> get" for `server`; it gets at most `timeout`.
//   NotFound            it knows nothing about the server
//   InvalidArgument     `helper` is no program name, or its answer cannot be read
//   FailedPrecondition  it is not there or failed
//   DeadlineExceeded    it was ended after `timeout`
absl::StatusOr<Credentials> AskCredentialHelper(const std::string& helper,
                                                const std::string& server,
                                                std::chrono::milliseconds timeout);

}  // namespace kapsule::registry
