// Unix sockets: listening, connecting, packets with file descriptors, peers.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/file.h"

namespace kapsule {

// A listening socket at `path` with file mode `mode`; `type` is SOCK_STREAM or
// SOCK_SEQPACKET. A stale socket file is replaced.
//   AlreadyExists    another process listens there
//   InvalidArgument  the path is longer than 107 bytes
absl::StatusOr<UniqueFd> ListenUnix(const std::filesystem::path& path, int type, unsigned mode);

//   NotFound     no such socket
//   Unavailable  nobody listens
absl::StatusOr<UniqueFd> ConnectUnix(const std::filesystem::path& path, int type);

struct PeerCredentials {
  pid_t pid;
  uid_t uid;
  gid_t gid;
};
absl::StatusOr<PeerCredentials> PeerOf(int socket);

// One packet on a SOCK_SEQPACKET socket: at most kMaxPacket bytes and
// kMaxPacketFds descriptors. Larger things travel as a sealed memfd.
inline constexpr size_t kMaxPacket = 128 * 1024;
inline constexpr size_t kMaxPacketFds = 4;

struct Packet {
  std::string bytes;
  std::vector<UniqueFd> fds;
};

//   Unavailable  the peer is gone
absl::Status SendPacket(int socket, ByteSpan bytes, const std::vector<int>& fds = {});

// Waits for a packet; descriptors get close-on-exec.
//   Unavailable       the peer closed the connection
//   InvalidArgument   the packet or its descriptors were cut short
//   DeadlineExceeded  SO_RCVTIMEO passed
absl::StatusOr<Packet> ReceivePacket(int socket);

// As ReceivePacket, into `out` (so that a secret never lies elsewhere) and
// without descriptors; returns the packet's length.
absl::StatusOr<size_t> ReceivePacketInto(int socket, MutableByteSpan out);

// SO_RCVTIMEO and SO_SNDTIMEO.
absl::Status SetTimeout(int socket, int milliseconds);

}  // namespace kapsule
