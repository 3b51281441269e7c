#include "core/control/holder_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <ctime>

#include "core/base/unix_socket.h"

namespace kapsule::control {
namespace {

constexpr size_t kMaxRequestFds = kMaxHeldFds + 1;
constexpr int kBacklog = 128;

// A packet's descriptors and the user whose process sent it.
struct Attached {
  std::array<UniqueFd, kMaxRequestFds> fds;
  size_t count = 0;
  std::optional<uid_t> uid;
};

void Detach(msghdr& message, Attached& out) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET) continue;
    if (header->cmsg_type == SCM_CREDENTIALS) out.uid = LoadLe<ucred>(CMSG_DATA(header)).uid;
    if (header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      UniqueFd fd(LoadLe<int>(CMSG_DATA(header) + i * sizeof(int)));
      if (out.count < out.fds.size()) out.fds[out.count++] = std::move(fd);
    }
  }
}

enum class Received { kNothing, kPacket, kBroken };

Received Receive(int socket, MutableByteSpan into, size_t* length, Attached& attached) {
  iovec io{into.data(), into.size()};
  alignas(
      cmsghdr) char control[CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(sizeof(int) * kMaxRequestFds)];
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (n < 0) return errno == EAGAIN || errno == EINTR ? Received::kNothing : Received::kBroken;
  Detach(message, attached);
  // The answer's socket comes last, so it is missing where descriptors are.
  if (n == 0 || attached.count == 0 || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
    return Received::kBroken;
  *length = static_cast<size_t>(n);
  return Received::kPacket;
}

// In milliseconds, for poll(2).
int PollTimeout(absl::Duration left) {
  if (left == absl::InfiniteDuration()) return -1;
  if (left <= absl::ZeroDuration()) return 0;
  return static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Hours(1)))) + 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HolderServer>> HolderServer::Make(UniqueFd listening, uid_t own,
                                                                 HolderStore& store) {
  int type = 0;
  socklen_t length = sizeof(type);
  if (getsockopt(listening.get(), SOL_SOCKET, SO_TYPE, &type, &length) != 0)
    return ErrnoStatus(errno, "the holder's socket");
  if (type != SOCK_SEQPACKET) return InvalidArgument("the holder's socket is not SOCK_SEQPACKET");
  // Somebody else made the socket: from now on clients are told this process as peer.
  if (listen(listening.get(), kBacklog) != 0) return ErrnoStatus(errno, "the holder's socket");
  if (fcntl(listening.get(), F_SETFL, O_NONBLOCK) != 0) return ErrnoStatus(errno, "O_NONBLOCK");
  return std::unique_ptr<HolderServer>(new HolderServer(std::move(listening), own, store));
}

bool HolderServer::HasRoomFor(uid_t uid) const {
  const auto used = [](const Client& client) { return client.socket.valid(); };
  const auto own = [&](const Client& client) { return used(client) && client.uid != 0; };
  if (uid != 0 && std::ranges::count_if(clients_, own) >= ptrdiff_t{kMaxOwnClients}) return false;
  return !std::ranges::all_of(clients_, used);
}

bool HolderServer::alone() const {
  return std::ranges::none_of(clients_, [](const Client& client) { return client.socket.valid(); });
}

void HolderServer::Accept() {
  UniqueFd socket(accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) {
    if (errno != EMFILE && errno != ENFILE) return;
    // The listening socket stays readable until a descriptor is free.
    const timespec pause{0, 50'000'000};
    nanosleep(&pause, nullptr);
    return;
  }
  ucred peer;
  socklen_t length = sizeof(peer);
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
  if ((peer.uid != 0 && peer.uid != own_) || !HasRoomFor(peer.uid)) return;
  // Each packet comes with the uid that sent it. Those of before this call have
  // it too, because a client asks for the same on its end.
  const int on = 1;
  if (setsockopt(socket.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) != 0) return;
  const auto place =
      std::ranges::find_if(clients_, [](const Client& client) { return !client.socket.valid(); });
  *place = {std::move(socket), peer.uid};
}

void HolderServer::Answer(int socket, size_t bytes, std::span<const UniqueFd> fds) {
  iovec io{answer_.data(), bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxHeldFds)] = {};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    for (size_t i = 0; i < fds.size(); ++i)
      StoreLe(CMSG_DATA(header) + i * sizeof(int), fds[i].get());
  }
  // A client that has gone, or whose socket is full, is its own business.
  sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool HolderServer::Serve(int client, bool* quit) {
  Attached attached;
  size_t length = 0;
  const Received received = Receive(client, request_, &length, attached);
  if (received != Received::kPacket) return received == Received::kNothing;
  if (!attached.uid || (*attached.uid != 0 && *attached.uid != own_)) return false;
  const Requester from = *attached.uid == 0 ? Requester::kRoot : Requester::kOwnUser;
  const UniqueFd socket = std::move(attached.fds[attached.count - 1]);
  const HolderStore::Answer answer =
      store_.Handle(from, ByteSpan(request_).first(length),
                    std::span(attached.fds).first(attached.count - 1), answer_);
  Answer(socket.get(), answer.bytes, answer.fds);
  *quit = answer.quit;
  return true;
}

absl::StatusOr<HolderServer::End> HolderServer::Run(int stop, absl::Duration abandon_after) {
  using Clock = std::chrono::steady_clock;
  std::array<pollfd, kMaxClients + 2> waiting;
  Clock::time_point alone_since = Clock::now();
  while (true) {
    const bool was_alone = alone();
    const absl::Duration left = was_alone
                                    ? abandon_after - absl::FromChrono(Clock::now() - alone_since)
                                    : absl::InfiniteDuration();
    // poll(2) passes over negative descriptors.
    for (size_t i = 0; i < kMaxClients; ++i) waiting[i] = {clients_[i].socket.get(), POLLIN, 0};
    waiting[kMaxClients] = {listening_.get(), POLLIN, 0};
    waiting[kMaxClients + 1] = {stop, POLLIN, 0};
    const int ready = poll(waiting.data(), waiting.size(), PollTimeout(left));
    if (ready < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "poll");
    }
    if (!was_alone) alone_since = Clock::now();
    // However late this is: nobody waits to be accepted either.
    if (ready == 0 && left <= absl::ZeroDuration()) return End::kAbandoned;
    if (waiting[kMaxClients + 1].revents != 0) return End::kStopped;
    bool quit = false;
    for (size_t i = 0; i < kMaxClients && !quit; ++i)
      if (waiting[i].revents != 0 && !Serve(clients_[i].socket.get(), &quit)) clients_[i] = {};
    if (quit) return End::kQuit;
    if (waiting[kMaxClients].revents != 0) Accept();
  }
}

}  // namespace kapsule::control
