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

}  // namespace

milliseconds Backoff::Next() {
  std::random_device random;
  std::uniform_int_distribution<milliseconds::rep> between(delay_.count() / 2,
                                                           delay_.count() * 3 / 2);
  delay_ = std::min(delay_ * 2, kMaxDelay);
  return milliseconds(between(random));
}

std::optional<milliseconds> RetryAfter(const http::Response& response) {
  const std::optional<std::string> text = response.headers.Find("Retry-After");
  if (!text || text->empty() || text->find_first_not_of("0123456789") != std::string::npos)
    return std::nullopt;
  const int seconds = text->size() > 4 ? kMaxRetryAfterSeconds : std::stoi(*text);
  return std::chrono::seconds(std::min(seconds, kMaxRetryAfterSeconds));
}

absl::StatusOr<http::Response> WithRetries(
    const RetryPolicy& policy, const std::function<absl::StatusOr<http::Response>()>& attempt) {
  Backoff backoff(policy.first_delay);
  for (int i = 1;; ++i) {
    absl::StatusOr<http::Response> result = attempt();
    if (i >= policy.attempts || !MayPass(result)) return result;
    const milliseconds delay = backoff.Next();
    const auto asked = result.ok() ? RetryAfter(*result) : std::nullopt;
    std::this_thread::sleep_for(asked.value_or(delay));
  }
}

}  // namespace kapsule::registry
