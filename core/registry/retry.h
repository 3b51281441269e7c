// Waiting and asking again, for requests that may be sent twice.
#pragma once

#include <chrono>
#include <functional>
#include <optional>

#include "core/http/client.h"

namespace kapsule::registry {

struct RetryPolicy {
  int attempts = 5;
  // Doubled each time, with a jitter of one half, at most 10 s. A Retry-After
  // header is obeyed up to 60 s.
  std::chrono::milliseconds first_delay{300};
};

// Delays between attempts: doubled each time, with a jitter of one half, at most
// 10 s. Not thread-safe.
class Backoff {
 public:
  explicit Backoff(std::chrono::milliseconds first) : first_(first), delay_(first) {}
  std::chrono::milliseconds Next();
  void Reset() { delay_ = first_; }

 private:
  const std::chrono::milliseconds first_;
  std::chrono::milliseconds delay_;
};

// What the answer asks us to wait, at most 60 s; seconds only: for a date our own
// delay has to do.
std::optional<std::chrono::milliseconds> RetryAfter(const http::Response& response);

// Calls `attempt` until it gives something other than a broken connection or
// 429, 500, 502, 503 or 504, or the attempts are used up; then its last result.
absl::StatusOr<http::Response> WithRetries(
    const RetryPolicy& policy, const std::function<absl::StatusOr<http::Response>()>& attempt);

}  // namespace kapsule::registry
