#include "core/registry/range_host.h"

#include "core/http/url.h"
#include "core/registry/answers.h"
#include "core/registry/hosts_default.h"
#include "core/registry/retry.h"

namespace kapsule::registry {
namespace {

// Nothing is known that says that another attempt would end alike.
bool MayPass(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// An answer that is no success.
absl::Status Refusal(const http::Response& response) {
  const std::string who = HostOfUrl(response.url);
  if (response.status == 401)
    return PermissionDenied("{} answered 401: there are no credentials for it, or wrong ones", who);
  if (response.status == 416)
    return DataLoss("{} answered 416: its blob is shorter than the manifest says", who);
  return AnswerStatus(who, response);
}

// The url may have expired, or its signature: the registry knows a new one.
bool IsStale(const absl::StatusOr<http::Response>& result) {
  return result.ok() && result->status / 100 == 4 && result->status != 408 &&
         result->status != 416 && result->status != 429;
}

http::Request RangeRequest(const std::string& url, const RangeTransfer& transfer,
                           const http::Request& limits) {
  http::Request request = limits;
  request.url = url;
  request.headers.Add("Range", transfer.RangeHeader());
  return request;
}

}  // namespace

RangeHost::RangeHost(std::string name, std::string url, std::string scope, uint64_t max_skip,
                     Endpoint endpoint)
    : name_(std::move(name)),
      url_(std::move(url)),
      scope_(std::move(scope)),
      max_skip_(max_skip),
      client_(endpoint.client),
      transport_(std::move(endpoint)) {}

absl::Status RangeHost::Read(RangeCursor& cursor, const http::Request& limits) {
  const absl::Status status = ReadChecked(cursor, limits);
  if (!cursor.sink_status.ok()) return cursor.sink_status;
  if (status.ok()) {
    absl::MutexLock lock(&mu_);
    has_worked_ = true;
    return status;
  }
  // The token service's word for it.
  if (absl::IsUnauthenticated(status))
    return Annotate(PermissionDenied("{}", Message(status)), name_);
  return Annotate(status, name_);
}

absl::Status RangeHost::ReadChecked(RangeCursor& cursor, const http::Request& limits) {
  std::string redirect;
  {
    absl::MutexLock lock(&mu_);
    redirect = redirect_;
  }
  if (!redirect.empty()) {
    ASSIGN_OR_RETURN(const Try next, ReadRedirected(redirect, cursor, limits));
    if (next == Try::kDone) return absl::OkStatus();
  }
  return ReadFromRegistry(cursor, limits);
}

absl::StatusOr<RangeHost::Try> RangeHost::ReadRedirected(const std::string& url,
                                                         RangeCursor& cursor,
                                                         const http::Request& limits) {
  RangeTransfer transfer(cursor, max_skip_);
  const absl::StatusOr<http::Response> result = client_->Download(
      RangeRequest(url, transfer, limits), [&](ByteSpan bytes) { return transfer.Take(bytes); },
      [&](const http::Response& head) { return transfer.Check(head); });
  if (IsStale(result)) {
    ForgetRedirect(url);
    return Try::kAskRegistry;
  }
  const absl::Status status = Conclude(transfer, result);
  // A busy store stays the right one; of another failure the address may be at fault.
  if (!status.ok() && !result.ok()) ForgetRedirect(url);
  RETURN_IF_ERROR(status);
  return Try::kDone;
}

absl::Status RangeHost::ReadFromRegistry(RangeCursor& cursor, const http::Request& limits) {
  RangeTransfer transfer(cursor, max_skip_);
  const absl::StatusOr<http::Response> result = transport_.Download(
      RangeRequest(url_, transfer, limits), scope_,
      [&](ByteSpan bytes) { return transfer.Take(bytes); },
      [&](const http::Response& head) {
        RETURN_IF_ERROR(transfer.Check(head));
        RememberRedirect(head.url);
        return absl::OkStatus();
      });
  return Conclude(transfer, result);
}

absl::Status RangeHost::Conclude(const RangeTransfer& transfer,
                                 const absl::StatusOr<http::Response>& result) {
  absl::Status status = transfer.Finish(result);
  if (result.ok() && result->status / 100 != 2) {
    status = Refusal(*result);
    const auto asked = MayPass(status) ? RetryAfter(*result) : std::nullopt;
    absl::MutexLock lock(&mu_);
    if (asked) not_before_ = std::max(not_before_, Clock::now() + *asked);
  }
  if (transfer.ignores_ranges()) {
    absl::MutexLock lock(&mu_);
    ignores_ranges_ = true;
  }
  return status;
}

void RangeHost::RememberRedirect(const std::string& url) {
  // On the registry itself a request needs its authentication.
  if (http::SameOrigin(url, url_)) return;
  absl::MutexLock lock(&mu_);
  redirect_ = url;
}

void RangeHost::ForgetRedirect(const std::string& url) {
  absl::MutexLock lock(&mu_);
  if (redirect_ == url) redirect_.clear();
}

RangeHost::Clock::time_point RangeHost::not_before() const {
  absl::MutexLock lock(&mu_);
  return not_before_;
}

bool RangeHost::RefusesRange(uint64_t first) const {
  absl::MutexLock lock(&mu_);
  return ignores_ranges_ && first > max_skip_;
}

bool RangeHost::has_worked() const {
  absl::MutexLock lock(&mu_);
  return has_worked_;
}

}  // namespace kapsule::registry
