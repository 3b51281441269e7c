#include "snapshotter/fuse/fetch_client.h"

#include <absl/time/clock.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <system_error>
#include <utility>

#include "core/base/log.h"

namespace kapsule::fuse {

FetchClient::FetchClient(const Options& options)
    : options_(options), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

FetchClient::~FetchClient() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  Wake();
  if (thread_.joinable()) thread_.join();
}

absl::Status FetchClient::Start() {
  if (!wake_.valid()) return ResourceExhausted("no eventfd");
  next_repeat_ = absl::Now() + options_.repeat;
  {
    absl::MutexLock lock(&mu_);
    none_since_ = absl::Now();
  }
  try {
    thread_ = std::thread([this] { Run(); });
  } catch (const std::system_error& e) {
    return ResourceExhausted("start the thread that hears kapsule-fetch: {}", e.what());
  }
  return absl::OkStatus();
}

void FetchClient::Wake() const {
  const uint64_t one = 1;
  if (write(wake_.get(), &one, sizeof(one)) < 0 && errno != EAGAIN)
    log::error("write an eventfd failed");
}

void FetchClient::UseSocket(UniqueFd socket) {
  auto shared = std::make_shared<const UniqueFd>(std::move(socket));
  {
    absl::MutexLock lock(&mu_);
    socket_.swap(shared);
    fresh_ = true;
    outbox_.clear();
  }
  Wake();
}

absl::StatusOr<std::unique_ptr<ReaderAt>> FetchClient::Open(const oci::Digest& digest,
                                                            RemoteBlob::File file,
                                                            const archive::IndexHeader& header) {
  ASSIGN_OR_RETURN(
      BlobPtr made,
      RemoteBlob::Make(
          digest, file, header, [this](control::FetchPacket packet) { Send(std::move(packet)); },
          options_.grace));
  BlobPtr known;
  {
    absl::MutexLock lock(&mu_);
    std::weak_ptr<RemoteBlob>& entry = blobs_[digest];
    known = entry.lock();
    if (known == nullptr) entry = made;
  }
  if (known == nullptr) return RemoteBlob::ReaderOf(std::move(made));
  RETURN_IF_ERROR(known->CheckBlocks(header));
  RETURN_IF_ERROR(known->UseFile(std::move(file)).status());
  return RemoteBlob::ReaderOf(std::move(known));
}

std::shared_ptr<RemoteBlob> FetchClient::Find(const oci::Digest& digest) const {
  absl::MutexLock lock(&mu_);
  const auto it = blobs_.find(digest);
  return it == blobs_.end() ? nullptr : it->second.lock();
}

std::vector<FetchClient::BlobPtr> FetchClient::Blobs() {
  std::vector<BlobPtr> blobs;
  absl::MutexLock lock(&mu_);
  for (auto it = blobs_.begin(); it != blobs_.end();) {
    if (BlobPtr blob = it->second.lock()) {
      blobs.push_back(std::move(blob));
      ++it;
    } else {
      it = blobs_.erase(it);
    }
  }
  return blobs;
}

// Without a socket it is lost, but the thread looks whether it may be waited for.
void FetchClient::Send(control::FetchPacket packet) {
  try {
    absl::MutexLock lock(&mu_);
    if (socket_ != nullptr && outbox_.size() < kMaxOutbox) outbox_.push_back(std::move(packet));
  } catch (const std::bad_alloc&) {
    // Lost as well: it is said again.
  }
  Wake();
}

void FetchClient::Run() {
  for (;;) {
    try {
      if (!Round()) return;
    } catch (const std::bad_alloc&) {
      log::error("no memory for what kapsule-fetch says");
    }
  }
}

bool FetchClient::Round() {
  Socket socket;
  bool fresh;
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) return false;
    socket = socket_;
    fresh = std::exchange(fresh_, false);
  }
  if (fresh || absl::Now() >= next_repeat_) SayAllAgain(fresh);
  const bool full = socket != nullptr && !Flush(socket);
  if (socket == nullptr) FailAllAfterGrace();
  const short events = full ? POLLIN | POLLOUT : POLLIN;
  pollfd fds[] = {{wake_.get(), POLLIN, 0}, {socket != nullptr ? socket->get() : -1, events, 0}};
  const int timeout = static_cast<int>(absl::ToInt64Milliseconds(UntilNext())) + 1;
  if (poll(fds, std::size(fds), timeout) <= 0) return true;
  uint64_t count;
  if (fds[0].revents != 0 && read(wake_.get(), &count, sizeof(count)) < 0 && errno != EAGAIN)
    log::error("read an eventfd failed");
  if ((fds[1].revents & ~POLLOUT) != 0) Receive(socket);
  return true;
}

void FetchClient::SayAllAgain(bool fresh) {
  next_repeat_ = absl::Now() + options_.repeat;
  {
    absl::MutexLock lock(&mu_);
    // What has not even been sent need not be repeated.
    if (socket_ == nullptr || (!fresh && !outbox_.empty())) return;
  }
  for (const BlobPtr& blob : Blobs()) blob->SendAgain(/*another_connection=*/fresh);
}

absl::Duration FetchClient::UntilNext() const {
  absl::Time next = next_repeat_;
  const absl::Time now = absl::Now();
  absl::MutexLock lock(&mu_);
  if (blobs_.empty()) return absl::Hours(1);
  const absl::Time end_of_grace = none_since_ + options_.grace;
  if (socket_ == nullptr && end_of_grace > now) next = std::min(next, end_of_grace);
  return std::clamp(next - now, absl::ZeroDuration(), absl::Hours(1));
}

void FetchClient::FailAllAfterGrace() {
  {
    absl::MutexLock lock(&mu_);
    if (socket_ != nullptr || absl::Now() < none_since_ + options_.grace) return;
  }
  for (const BlobPtr& blob : Blobs())
    blob->FailWaiting(Unavailable("kapsule-fetch, which gets it, is not running"));
}

bool FetchClient::Flush(const Socket& socket) {
  for (;;) {
    control::FetchPacket packet;
    {
      absl::MutexLock lock(&mu_);
      if (outbox_.empty() || socket_ != socket) return true;
      packet = std::move(outbox_.front());
      outbox_.pop_front();
    }
    const absl::Status status =
        control::SendFetchPacket(socket->get(), packet, control::FetchSend::kNoWait);
    if (absl::IsResourceExhausted(status)) {
      absl::MutexLock lock(&mu_);
      if (socket_ == socket) outbox_.push_front(std::move(packet));
      return false;
    }
    if (!status.ok()) {
      Lost(socket, status);
      return true;
    }
  }
}

void FetchClient::Receive(const Socket& socket) {
  const absl::StatusOr<control::FetchPacket> packet = control::ReceiveFetchPacket(socket->get());
  if (!packet.ok()) return Lost(socket, packet.status());
  if (const BlobPtr blob = Find(packet->blob)) return blob->Handle(*packet);
  // Nobody reads what is not open.
  if (const auto* const drop = std::get_if<control::FetchDrop>(&packet->body))
    Send({packet->blob, control::FetchDropped{drop->first, drop->count, drop->question}});
}

// Also after a packet that is none: whoever sent it is not to be trusted with more.
void FetchClient::Lost(const Socket& socket, const absl::Status& why) {
  {
    absl::MutexLock lock(&mu_);
    if (socket_ != socket) return;
    socket_ = nullptr;
    none_since_ = absl::Now();
    outbox_.clear();
  }
  shutdown(socket->get(), SHUT_RDWR);  // the holder has it too: kapsule-fetch is to see it
  log::warn("no connection to kapsule-fetch any more: {}", Describe(why));
}

}  // namespace kapsule::fuse
