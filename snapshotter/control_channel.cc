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

// kapsule-fuse reads hostile bytes, so what it says is not trusted: it goes to
// logs, terminals and containerd.
absl::Status Cleaned(const absl::Status& status) {
  return absl::Status(status.code(),
                      PrintableAscii(Message(status), ControlChannel::kMaxErrorText));
}

}  // namespace

// Ids begin above those of whoever had the socket before.
ControlChannel::ControlChannel(UniqueFd socket, std::function<void()> on_end)
    : socket_(std::move(socket)),
      leave_(eventfd(0, EFD_CLOEXEC)),
      on_end_(std::move(on_end)),
      last_id_(static_cast<uint64_t>(absl::GetCurrentTimeNanos())) {
  setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &kSendTimeout, sizeof(kSendTimeout));
  reader_ = std::thread([this] { ReadReplies(); });
}

void ControlChannel::Shutdown() { shutdown(socket_.get(), SHUT_RDWR); }

void ControlChannel::Close() {
  if (!reader_.joinable()) return;
  Shutdown();
  Join();
}

void ControlChannel::Leave() {
  if (reader_.joinable()) Join();
}

void ControlChannel::Join() {
  const uint64_t one = 1;
  if (write(leave_.get(), &one, sizeof(one)) < 0) log::error("write an eventfd failed");
  reader_.join();
}

bool ControlChannel::ended() const {
  absl::MutexLock lock(&mu_);
  return ended_;
}

absl::StatusOr<v1::DataPlaneReply> ControlChannel::Call(v1::DataPlaneRequest request,
                                                        const std::vector<int>& fds,
                                                        absl::Time deadline) {
  Pending pending;
  {
    absl::MutexLock lock(&mu_);
    if (ended_) return Unavailable("kapsule-fuse has ended");
    request.set_id(++last_id_);
    pending_.emplace(request.id(), &pending);
  }
  const absl::Status sent = control::SendRequest(socket_.get(), request, fds);
  absl::MutexLock lock(&mu_);
  if (sent.ok()) mu_.AwaitWithDeadline(absl::Condition(&pending.done), deadline);
  pending_.erase(request.id());
  if (!sent.ok()) return Annotate(sent, "ask kapsule-fuse");
  if (!pending.done) return DeadlineExceeded("kapsule-fuse has not answered in time");
  if (pending.reply.ok()) RETURN_IF_ERROR(Cleaned(control::StatusOf(*pending.reply)));
  return std::move(pending.reply);
}

// False where the reader is to end.
bool ControlChannel::WaitForReply() const {
  for (;;) {
    pollfd fds[] = {{socket_.get(), POLLIN, 0}, {leave_.get(), POLLIN, 0}};
    if (poll(fds, std::size(fds), -1) < 0 && errno != EINTR) return false;
    if (fds[1].revents != 0) return false;
    if (fds[0].revents != 0) return true;
  }
}

void ControlChannel::ReadReplies() {
  while (WaitForReply()) {
    absl::StatusOr<v1::DataPlaneReply> reply = control::ReceiveReply(socket_.get());
    if (!reply.ok()) break;
    absl::MutexLock lock(&mu_);
    const auto it = pending_.find(reply->id());
    if (it == pending_.end()) continue;  // its caller has gone
    it->second->reply = std::move(reply);
    it->second->done = true;
  }
  {
    absl::MutexLock lock(&mu_);
    ended_ = true;
    for (auto& [id, pending] : pending_) {
      if (pending->done) continue;
      pending->reply = Unavailable("kapsule-fuse has ended");
      pending->done = true;
    }
  }
  on_end_();
}

}  // namespace kapsule::snapshotter
