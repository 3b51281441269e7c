// Waiting and asking again, for requests that may be sent twice.
#pragma once

#include <chrono>
#include <functional>

#include "core/http/client.h"

namespace kapsule::registry {

struct RetryPolicy {
  int attempts = 5;
  // Doubled each time, with a jitter of one half, at most 10 s. A Retry-After
  // header is obeyed up to 60 s.
  std::chrono::milliseconds first_delay{300};
};

// Calls `attempt` until it gives something other than a broken connection or
// 429, 500, 502, 503 or 504, or the attempts are used up; then its last result.
absl::StatusOr<http::Response> WithRetries(
    const RetryPolicy& policy, const std::function<absl::StatusOr<http::Response>()>& attempt);

}  // namespace kapsule::registry
