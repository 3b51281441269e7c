#include "snapshotter/fetch/fetch_server.h"

#include <absl/time/clock.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <new>
#include <system_error>
#include <utility>

#include "core/base/log.h"

namespace kapsule::fetch {
namespace {

constexpr unsigned kOpeners = 16;  // most of the time they wait for a registry
constexpr size_t kMaxOpenings = 1024;

oci::Digest DigestOf(const std::string& hex) {  // checked by CheckFetchRequest()
  return oci::Digest::Parse("sha256:" + hex).value_or(oci::Digest());
}

BlobName NameOf(const v1::FetchOpen& open) {
  const v1::FetchIndex& index = open.index();
  return {DigestOf(open.digest()),
          open.size(),
          {index.version(), index.header_offset(), index.header_length(), DigestOf(index.root())}};
}

Origin OriginOf(const v1::FetchOpen& open) {
  Origin origin{DigestOf(open.digest()), open.size(), {}, {}};
  origin.references.assign(open.sources().begin(), open.sources().end());
  for (const v1::FetchCredentials& c : open.credentials())
    origin.credentials.push_back(
        {c.place(), c.username(), c.password(), c.identity_token(), c.registry_token()});
  return origin;
}

v1::FetchStats StatsOf(const FetcherCounters& c) {
  v1::FetchStats stats;
  stats.set_bytes_fetched(c.bytes_fetched);
  stats.set_blocks_fetched(c.blocks_fetched);
  stats.set_blocks_refused(c.blocks_refused);
  stats.set_wanted_there(c.wanted_there);
  stats.set_wanted_fetched(c.wanted_fetched);
  stats.set_failures(c.failures);
  stats.set_retries(c.retries);
  stats.set_suspects(c.suspects);
  stats.set_mended(c.mended);
  stats.set_evicted_bytes(c.evicted_bytes);
  stats.set_auth_refreshes(c.auth_refreshes);
  stats.set_cache_bytes(c.cache_bytes);
  stats.set_cached_blobs(c.cached_blobs);
  stats.set_open_blobs(c.open_blobs);
  stats.set_waiting_blocks(c.waiting_blocks);
  return stats;
}

}  // namespace

absl::Status FetchServer::Run(int signals) {
  lost_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!lost_.valid()) return ErrnoStatus(errno, "eventfd");
  RETURN_IF_ERROR(StartOpeners());
  while (control_open_ || link_ != nullptr) {
    pollfd fds[] = {{control_open_ ? control_.get() : -1, POLLIN, 0},
                    {signals, POLLIN, 0},
                    {lost_.get(), POLLIN, 0}};
    if (poll(fds, std::size(fds), -1) < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "poll");
    }
    if (fds[1].revents != 0) return absl::OkStatus();
    if (fds[2].revents != 0) {
      uint64_t count;
      // A link that was replaced meanwhile is not the one that is there.
      if (read(lost_.get(), &count, sizeof(count)) > 0 && !outbox_.connected()) {
        link_ = nullptr;
        // Whoever starts this program again also gives kapsule-fuse a new link.
        if (control_open_) return Unavailable("kapsule-fuse has ended the connection");
      }
    }
    if (fds[0].revents != 0) RETURN_IF_ERROR(HandleControl());
  }
  return absl::OkStatus();
}

absl::Status FetchServer::StartOpeners() {
  const auto next = [this] {
    const auto some = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !openings_.empty(); };
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&some));
    std::function<void()> opening = std::move(openings_.front());
    openings_.pop_front();
    return opening;
  };
  try {
    for (unsigned i = 0; i < kOpeners; ++i)
      std::thread([next] {
        for (;;) next()();
      }).detach();
  } catch (const std::system_error& e) {
    return ResourceExhausted("start a thread: {}", e.what());
  }
  return absl::OkStatus();
}

absl::Status FetchServer::HandleControl() {
  absl::StatusOr<control::ReceivedFetchRequest> request =
      control::ReceiveFetchRequest(control_.get());
  if (request.ok()) {
    const uint64_t id = request->message.id();
    const absl::Status checked = control::CheckFetchRequest(request->message, request->fds.size());
    if (checked.ok()) {
      Dispatch(*std::move(request));
    } else {
      Answer(control::MakeFetchReply(id, checked));
    }
    return absl::OkStatus();
  }
  const bool gone = absl::IsUnavailable(request.status());
  if (link_ == nullptr && !gone) return request.status();
  control_open_ = false;
  shutdown(control_.get(), SHUT_RDWR);
  if (link_ != nullptr)
    log::warn("fetching on for kapsule-fuse without control: {}",
              gone ? "kapsule-snapshotter is gone" : Describe(request.status()));
  return absl::OkStatus();
}

void FetchServer::Dispatch(control::ReceivedFetchRequest request) {
  const v1::FetchRequest& message = request.message;
  v1::FetchReply reply = control::MakeFetchReply(message.id(), absl::OkStatus());
  switch (message.request_case()) {
    case v1::FetchRequest::kOpen:
      return Open(message);
    case v1::FetchRequest::kConnect:
      return Connect(message.id(), std::move(request.fds[0]));
    case v1::FetchRequest::kClose:
      fetcher_.Close(DigestOf(message.close().digest()));
      break;
    case v1::FetchRequest::kForget:
      fetcher_.Forget(DigestOf(message.forget().digest()));
      break;
    case v1::FetchRequest::kGetStats:
      *reply.mutable_stats() = StatsOf(fetcher_.counters());
      break;
    case v1::FetchRequest::REQUEST_NOT_SET:  // CheckFetchRequest() refuses it
      break;
  }
  Answer(reply);
}

void FetchServer::Open(const v1::FetchRequest& request) {
  const v1::FetchOpen& open = request.open();
  const absl::Time deadline = absl::Now() + absl::Milliseconds(open.timeout_ms());
  auto opening = [this, id = request.id(), name = NameOf(open), origin = OriginOf(open), deadline] {
    absl::StatusOr<UniqueFd> file = Cancelled("");
    try {
      file = fetcher_.Open(name, origin, deadline);
    } catch (const std::bad_alloc&) {
      file = ResourceExhausted("no memory to open it");
    }
    const absl::Status status =
        Annotate(file.status(), "open blob " + name.digest.text() + " for fetching");
    if (!status.ok()) return Answer(control::MakeFetchReply(id, status));
    Answer(control::MakeFetchReply(id, status), {file->get()});
  };
  {
    absl::MutexLock lock(&mu_);
    if (openings_.size() < kMaxOpenings) return openings_.push_back(std::move(opening));
  }
  Answer(control::MakeFetchReply(
      request.id(), ResourceExhausted("{} blobs wait to be opened already", kMaxOpenings)));
}

void FetchServer::Connect(uint64_t id, UniqueFd socket) {
  link_ = nullptr;
  const auto lost = [this] {
    const uint64_t one = 1;
    if (write(lost_.get(), &one, sizeof(one)) < 0) log::error("write an eventfd failed");
  };
  absl::StatusOr<std::unique_ptr<DataLink>> link =
      DataLink::Start(std::move(socket), fetcher_, outbox_, lost);
  if (link.ok()) link_ = *std::move(link);
  Answer(control::MakeFetchReply(id, link.status()));
}

void FetchServer::Answer(const v1::FetchReply& reply, const std::vector<int>& fds) {
  const absl::Status status = control::SendFetchReply(control_.get(), reply, fds);
  if (!status.ok()) log::debug("answer to the snapshotter: {}", Describe(status));
}

}  // namespace kapsule::fetch
