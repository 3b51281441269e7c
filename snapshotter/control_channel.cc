#include "snapshotter/control_channel.h"

#include <absl/time/clock.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/log.h"
#include "core/base/printable.h"

namespace kapsule::snapshotter {
namespace {

// A peer that does not read must not hold a caller for ever.
constexpr timeval kSendTimeout{1, 0};

// The peers read hostile bytes, so what they say is not trusted: it goes to logs,
// terminals and containerd.
absl::Status Cleaned(const absl::Status& status) {
  return absl::Status(status.code(), PrintableAscii(Message(status), kMaxPeerText));
}

absl::Status Send(int socket, const v1::DataPlaneRequest& request, const std::vector<int>& fds) {
  return control::SendRequest(socket, request, fds);
}
absl::Status Send(int socket, const v1::FetchRequest& request, const std::vector<int>& fds) {
  return control::SendFetchRequest(socket, request, fds);
}
absl::StatusOr<v1::DataPlaneReply> Receive(DataPlaneProtocol, int socket) {
  return control::ReceiveReply(socket);
}
absl::StatusOr<control::ReceivedFetchReply> Receive(FetchProtocol, int socket) {
  return control::ReceiveFetchReply(socket);
}
const v1::DataPlaneReply& MessageOf(const v1::DataPlaneReply& reply) { return reply; }
const v1::FetchReply& MessageOf(const control::ReceivedFetchReply& reply) { return reply.message; }

}  // namespace

// Ids begin above those of whoever had the socket before.
template <typename Protocol>
CallChannel<Protocol>::CallChannel(UniqueFd socket, std::function<void()> on_end)
    : socket_(std::move(socket)),
      leave_(eventfd(0, EFD_CLOEXEC)),
      on_end_(std::move(on_end)),
      last_id_(static_cast<uint64_t>(absl::GetCurrentTimeNanos())) {
  setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &kSendTimeout, sizeof(kSendTimeout));
  reader_ = std::thread([this] { ReadReplies(); });
}

template <typename Protocol>
void CallChannel<Protocol>::Shutdown() {
  shutdown(socket_.get(), SHUT_RDWR);
}

template <typename Protocol>
void CallChannel<Protocol>::Close() {
  if (!reader_.joinable()) return;
  Shutdown();
  Join();
}

template <typename Protocol>
void CallChannel<Protocol>::Leave() {
  if (reader_.joinable()) Join();
}

template <typename Protocol>
void CallChannel<Protocol>::Join() {
  const uint64_t one = 1;
  if (write(leave_.get(), &one, sizeof(one)) < 0) log::error("write an eventfd failed");
  reader_.join();
}

template <typename Protocol>
bool CallChannel<Protocol>::ended() const {
  absl::MutexLock lock(&mu_);
  return ended_;
}

template <typename Protocol>
absl::StatusOr<typename Protocol::Reply> CallChannel<Protocol>::Call(Request request,
                                                                     const std::vector<int>& fds,
                                                                     absl::Time deadline) {
  Pending pending;
  {
    absl::MutexLock lock(&mu_);
    if (ended_) return Unavailable("{} has ended", Protocol::kPeer);
    request.set_id(++last_id_);
    pending_.emplace(request.id(), &pending);
  }
  const absl::Status sent = Send(socket_.get(), request, fds);
  // The peer is gone. So that callers see that this channel has ended, and go to the
  // next one, the reader is awaited, which surely ends after a shutdown.
  const bool gone = absl::IsUnavailable(sent);
  if (gone) Shutdown();
  absl::MutexLock lock(&mu_);
  if (sent.ok()) mu_.AwaitWithDeadline(absl::Condition(&pending.done), deadline);
  if (gone) mu_.AwaitWithDeadline(absl::Condition(&ended_), deadline);
  pending_.erase(request.id());
  if (!sent.ok()) return Annotate(sent, fmt::format("ask {}", Protocol::kPeer));
  if (!pending.done) return DeadlineExceeded("{} has not answered in time", Protocol::kPeer);
  if (pending.reply.ok()) RETURN_IF_ERROR(Cleaned(control::StatusOf(MessageOf(*pending.reply))));
  return std::move(pending.reply);
}

// False where the reader is to end.
template <typename Protocol>
bool CallChannel<Protocol>::WaitForReply() const {
  for (;;) {
    pollfd fds[] = {{socket_.get(), POLLIN, 0}, {leave_.get(), POLLIN, 0}};
    if (poll(fds, std::size(fds), -1) < 0 && errno != EINTR) return false;
    if (fds[1].revents != 0) return false;
    if (fds[0].revents != 0) return true;
  }
}

template <typename Protocol>
void CallChannel<Protocol>::ReadReplies() {
  while (WaitForReply()) {
    absl::StatusOr<Reply> reply = Receive(Protocol(), socket_.get());
    if (!reply.ok()) break;
    absl::MutexLock lock(&mu_);
    const auto it = pending_.find(MessageOf(*reply).id());
    if (it == pending_.end()) continue;  // its caller has gone
    it->second->reply = std::move(reply);
    it->second->done = true;
  }
  {
    absl::MutexLock lock(&mu_);
    ended_ = true;
    for (auto& [id, pending] : pending_) {
      if (pending->done) continue;
      pending->reply = Unavailable("{} has ended", Protocol::kPeer);
      pending->done = true;
    }
  }
  on_end_();
}

template class CallChannel<DataPlaneProtocol>;
template class CallChannel<FetchProtocol>;

}  // namespace kapsule::snapshotter
