#include "core/registry/retry.h"

#include <algorithm>
#include <random>
#include <thread>

namespace kapsule::registry {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kMaxDelay{10'000};
constexpr int kMaxRetryAfterSeconds = 60;

bool MayPass(const absl::StatusOr<http::Response>& result) {
  if (!result.ok()) return absl::IsUnavailable(result.status());
  const int status = result->status;
  return status == 429 || status == 500 || (status >= 502 && status <= 504);
}

// Seconds only; for a date our own delay has to do.
std::optional<milliseconds> RetryAfter(const absl::StatusOr<http::Response>& result) {
  if (!result.ok()) return std::nullopt;
  const std::optional<std::string> text = result->headers.Find("Retry-After");
  if (!text || text->empty() || text->find_first_not_of("0123456789") != std::string::npos)
    return std::nullopt;
  const int seconds = text->size() > 4 ? kMaxRetryAfterSeconds : std::stoi(*text);
  return std::chrono::seconds(std::min(seconds, kMaxRetryAfterSeconds));
}

milliseconds Jittered(milliseconds delay) {
  std::random_device random;
  std::uniform_int_distribution<milliseconds::rep> between(delay.count() / 2,
                                                           delay.count() * 3 / 2);
  return milliseconds(between(random));
}

}  // namespace

absl::StatusOr<http::Response> WithRetries(
    const RetryPolicy& policy, const std::function<absl::StatusOr<http::Response>()>& attempt) {
  milliseconds delay = policy.first_delay;
  for (int i = 1;; ++i) {
    absl::StatusOr<http::Response> result = attempt();
    if (i >= policy.attempts || !MayPass(result)) return result;
    std::this_thread::sleep_for(RetryAfter(result).value_or(Jittered(delay)));
    delay = std::min(delay * 2, kMaxDelay);
  }
}

}  // namespace kapsule::registry
