#include "core/base/unix_socket.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>

namespace kapsule {
namespace {

absl::StatusOr<sockaddr_un> AddressOf(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.native().size() >= sizeof(address.sun_path))
    return InvalidArgument("socket path {} is longer than {} bytes", path.string(),
                           sizeof(address.sun_path) - 1);
  std::memcpy(address.sun_path, path.c_str(), path.native().size());
  return address;
}

absl::Status SocketError(int error, const std::string& what) {
  if (error == EAGAIN || error == EWOULDBLOCK) return DeadlineExceeded("{}: timed out", what);
  return ErrnoStatus(error, what);
}

}  // namespace

absl::StatusOr<UniqueFd> ListenUnix(const std::filesystem::path& path, int type, unsigned mode) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  if (ConnectUnix(path, type).ok())
    return AlreadyExists("another process listens on {}", path.string());
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  struct stat st;
  if (lstat(path.c_str(), &st) == 0) {
    if (!S_ISSOCK(st.st_mode)) return AlreadyExists("{} is not a socket", path.string());
    unlink(path.c_str());
  }
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return ErrnoStatus(errno, "bind " + path.string());
  if (chmod(path.c_str(), mode) != 0) return ErrnoStatus(errno, "chmod " + path.string());
  if (listen(fd.get(), 128) != 0) return ErrnoStatus(errno, "listen " + path.string());
  return fd;
}

absl::StatusOr<UniqueFd> ConnectUnix(const std::filesystem::path& path, int type) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return ErrnoStatus(errno, "connect to " + path.string());
  return fd;
}

absl::StatusOr<PeerCredentials> PeerOf(int socket) {
  ucred peer;
  socklen_t length = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
    return ErrnoStatus(errno, "SO_PEERCRED");
  return PeerCredentials{peer.pid, peer.uid, peer.gid};
}

absl::Status SendPacket(int socket, ByteSpan bytes, const std::vector<int>& fds) {
  if (bytes.size() > kMaxPacket || fds.size() > kMaxPacketFds)
    return InvalidArgument("a packet of {} bytes and {} descriptors", bytes.size(), fds.size());
  iovec io{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPacketFds)] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  ssize_t n;
  do {
    n = sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return SocketError(errno, "send");
  return absl::OkStatus();
}

absl::StatusOr<Packet> ReceivePacket(int socket) {
  Packet packet;
  packet.bytes.resize(kMaxPacket);
  iovec io{packet.bytes.data(), packet.bytes.size()};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPacketFds)];
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t n;
  do {
    n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return SocketError(errno, "receive");
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i)
      packet.fds.emplace_back(LoadLe<int>(CMSG_DATA(header) + i * sizeof(int)));
  }
  if (n == 0 && packet.fds.empty()) return Unavailable("the peer closed the connection");
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
    return InvalidArgument("a packet longer than {} bytes or with more than {} descriptors",
                           kMaxPacket, kMaxPacketFds);
  packet.bytes.resize(static_cast<size_t>(n));
  return packet;
}

absl::StatusOr<size_t> ReceivePacketInto(int socket, MutableByteSpan out) {
  iovec io{out.data(), out.size()};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  ssize_t n;
  do {
    n = recvmsg(socket, &message, 0);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return SocketError(errno, "receive");
  if (n == 0) return Unavailable("the peer closed the connection");
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
    return InvalidArgument("a packet longer than {} bytes", out.size());
  return static_cast<size_t>(n);
}

absl::Status SetTimeout(int socket, int milliseconds) {
  const timeval limit{milliseconds / 1000, milliseconds % 1000 * 1000};
  if (setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) != 0 ||
      setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0)
    return ErrnoStatus(errno, "set a socket's timeout");
  return absl::OkStatus();
}

}  // namespace kapsule
