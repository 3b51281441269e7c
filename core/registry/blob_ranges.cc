#include "core/registry/blob_ranges.h"

#include <algorithm>
#include <thread>

#include "core/base/file.h"
#include "core/base/printable.h"
#include "core/http/url.h"
#include "core/registry/retry.h"

namespace kapsule::registry {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kMaxAuthorityBytes = 4 << 20;
constexpr size_t kMaxOtherError = 160;
constexpr milliseconds kPoll{100};
constexpr char kHub[] = "docker.io", kHubHost[] = "registry-1.docker.io";

absl::StatusOr<std::string> ReadAuthorities(const Host& host) {
  std::string pem;
  for (const std::filesystem::path& file : host.authorities) {
    const absl::StatusOr<std::string> text = ReadFile(file, kMaxAuthorityBytes);
    if (!text.ok())
      return FailedPrecondition("{}: authorities: {}", host.name, Message(text.status()));
    pem += *text + "\n";
  }
  return pem;
}

// A mirror is told whose blob is meant.
absl::StatusOr<std::string> BlobUrl(const Host& host, const RangeBlob& blob) {
  const std::string url = host.url + "/" + blob.repository + "/blobs/" + blob.digest.text();
  if (host.name == blob.host || (blob.host == kHub && host.name == kHubHost))
    return http::ResolveUrl(url, url);
  return http::AddQuery(url, "ns", blob.host);
}

// False where `stopped` ended it.
bool Sleep(RangeHost::Clock::time_point until, const std::function<bool()>& stopped) {
  for (;;) {
    if (stopped && stopped()) return false;
    const auto left = until - RangeHost::Clock::now();
    if (left.count() <= 0) return true;
    std::this_thread::sleep_for(std::min<RangeHost::Clock::duration>(left, kPoll));
  }
}

}  // namespace

http::Options RangeConnections() {
  http::Options options;
  options.connect_timeout = milliseconds(10'000);
  options.stall_timeout = milliseconds(5000);
  options.stall_bytes = 5 * 64 * 1024;
  return options;
}

absl::StatusOr<std::vector<ConnectedHost>> ConnectHosts(const std::vector<Host>& hosts,
                                                        const http::Options& options) {
  std::vector<ConnectedHost> connected;
  for (const Host& host : hosts) {
    if (!host.pull) continue;
    http::Options of_host = options;
    of_host.tls_origin = host.url;
    ASSIGN_OR_RETURN(of_host.more_authorities, ReadAuthorities(host));
    of_host.verify_tls = options.verify_tls && !host.skip_verify;
    if (!host.client_certificates.empty()) {
      of_host.client_certificate = host.client_certificates.front().certificate;
      of_host.client_key = host.client_certificates.front().key;
    }
    if (host.connect_timeout.count() > 0) of_host.connect_timeout = host.connect_timeout;
    connected.push_back({host, std::make_shared<const http::Client>(std::move(of_host))});
  }
  return connected;
}

absl::StatusOr<std::unique_ptr<BlobRanges>> BlobRanges::Open(
    RangeBlob blob, const std::vector<ConnectedHost>& hosts,
    const HostCredentialSource& credentials, const RangeOptions& options) {
  std::unique_ptr<BlobRanges> ranges(new BlobRanges(std::move(blob), options));
  const std::string scope = "repository:" + ranges->blob_.repository + ":pull";
  for (const ConnectedHost& connected : hosts) {
    const Host& host = connected.host;
    ASSIGN_OR_RETURN(std::string url, BlobUrl(host, ranges->blob_));
    Endpoint endpoint{host.url,
                      [credentials, name = host.name == kHubHost ? kHub : host.name] {
                        return credentials(name);
                      },
                      host.headers, RetryPolicy{.attempts = 1, .first_delay = options.first_delay},
                      connected.client};
    ranges->hosts_.push_back(std::make_unique<RangeHost>(host.name, std::move(url), scope,
                                                         options.max_skip, std::move(endpoint)));
  }
  if (ranges->hosts_.empty())
    return InvalidArgument("{}: there is no host to pull from", ranges->blob_.host);
  return ranges;
}

absl::Status BlobRanges::Read(uint64_t offset, uint64_t size, const http::Sink& sink,
                              const ReadLimits& limits) {
  const std::optional<uint64_t> end = CheckedAdd(offset, size);
  if (!end || *end > blob_.size)
    return absl::OutOfRangeError(
        fmt::format("{} bytes at {} of a blob of {}", size, offset, blob_.size));
  if (size == 0) return absl::OkStatus();
  http::Request request;
  request.deadline = limits.deadline;
  request.stopped = limits.stopped;
  RangeCursor cursor{.next = offset, .end = *end, .blob_size = blob_.size, .sink = sink};
  const absl::Status status = ReadRounds(cursor, request);
  if (!cursor.sink_status.ok()) return cursor.sink_status;
  return Annotate(status,
                  fmt::format("{}/{}@{}", blob_.host, blob_.repository, blob_.digest.text()));
}

// What came of asking every host once.
struct BlobRanges::Round {
  absl::Status status;                                      // the last host's: it is the registry
  bool may_pass = false;                                    // another round may end differently
  Clock::time_point not_before = Clock::time_point::max();  // of that round
};

absl::Status BlobRanges::ReadRounds(RangeCursor& cursor, const http::Request& limits) {
  Backoff backoff(options_.first_delay);
  for (int rounds = 1;; ++rounds) {
    const uint64_t before = cursor.next;
    const Round round = AskHosts(cursor, limits);
    if (round.status.ok() || !round.may_pass || rounds == options_.max_rounds) return round.status;
    if (cursor.next > before) backoff.Reset();
    const Clock::time_point next = std::max(Clock::now() + backoff.Next(), round.not_before);
    if (next >= limits.deadline) return round.status;
    if (!Sleep(next, limits.stopped)) return Cancelled("stopped");
  }
}

BlobRanges::Round BlobRanges::AskHosts(RangeCursor& cursor, const http::Request& limits) {
  Round round;
  std::string others;
  for (const size_t i : Order()) {
    RangeHost& host = *hosts_[i];
    const absl::Status status = AskHost(host, cursor, limits);
    if (status.ok()) {
      Prefer(i);
      return {};
    }
    // A mirror that gives other bytes than it should is not the first to be asked next.
    if (absl::IsDataLoss(cursor.sink_status)) Prefer((i + 1) % hosts_.size());
    // What the sink took cannot be taken back, nor time.
    if (!cursor.sink_status.ok() || absl::IsCancelled(status) || cursor.done() ||
        Clock::now() >= limits.deadline)
      return {.status = status};
    const bool is_registry = i + 1 == hosts_.size();
    const bool may_pass = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
    round.may_pass = round.may_pass || (may_pass && (is_registry || host.has_worked()));
    round.not_before = std::min(round.not_before, host.not_before());
    if (is_registry)
      round.status = status;
    else
      others += "; " + Printable(Message(status), kMaxOtherError);
  }
  round.status = absl::Status(round.status.code(), Message(round.status) + others);
  return round;
}

absl::Status BlobRanges::AskHost(RangeHost& host, RangeCursor& cursor,
                                 const http::Request& limits) const {
  if (host.RefusesRange(cursor.next))
    return FailedPrecondition("{}: it does not do ranges", host.name());
  if (host.not_before() > Clock::now())
    return Unavailable("{}: it is busy, and asked to be left alone for a while", host.name());
  return host.Read(cursor, limits);
}

std::vector<size_t> BlobRanges::Order() {
  size_t first = 0;
  {
    absl::MutexLock lock(&mu_);
    if (Clock::now() < preferred_until_) first = preferred_;
  }
  std::vector<size_t> order{first};
  for (size_t i = 0; i < hosts_.size(); ++i) {
    if (i != first) order.push_back(i);
  }
  return order;
}

void BlobRanges::Prefer(size_t host) {
  absl::MutexLock lock(&mu_);
  const Clock::time_point now = Clock::now();
  if (host == preferred_ && now < preferred_until_) return;
  preferred_ = host;
  preferred_until_ = now + options_.keep_host;
}

uint64_t BlobRanges::challenges() const {
  uint64_t sum = 0;
  for (const auto& host : hosts_) sum += host->challenges();
  return sum;
}

}  // namespace kapsule::registry
