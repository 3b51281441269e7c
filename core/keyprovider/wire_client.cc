#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <chrono>

#include "core/base/unix_socket.h"
#include "core/keyprovider/wire_frames.h"

namespace kapsule::keyprovider {
namespace {

using Clock = std::chrono::steady_clock;

// Sets what is left until `deadline` as the socket's timeout.
absl::Status SetDeadline(int socket, Clock::time_point deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  if (left <= 0) return DeadlineExceeded("timed out");
  return SetTimeout(socket, static_cast<int>(left));
}

// As ConnectUnix(), but the wait for a place in the listener's queue ends too.
absl::StatusOr<UniqueFd> Connect(const std::filesystem::path& path, Clock::time_point deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.native().size() >= sizeof(address.sun_path))
    return InvalidArgument("the path is longer than {} bytes", sizeof(address.sun_path) - 1);
  std::memcpy(address.sun_path, path.c_str(), path.native().size());
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  RETURN_IF_ERROR(SetDeadline(fd.get(), deadline));
  while (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == EAGAIN) return DeadlineExceeded("timed out");
    // NotFound would mean that the provider has no key.
    if (errno == ENOENT) return Unavailable("no such socket; is kapsule-keyprovider running?");
    if (errno != EINTR) return ErrnoStatus(errno, "connect");
  }
  return fd;
}

// Errors are of the way there and back; the provider's own stand in the frame.
absl::StatusOr<Secret> Exchange(const std::filesystem::path& socket, int annotations_fd,
                                Clock::time_point deadline) {
  struct stat st;
  if (fstat(annotations_fd, &st) != 0) return ErrnoStatus(errno, "annotations");
  if (st.st_size < 0 || static_cast<uint64_t>(st.st_size) > kMaxAnnotationBytes)
    return InvalidArgument("{} bytes of annotations, more than {}", st.st_size,
                           kMaxAnnotationBytes);
  ASSIGN_OR_RETURN(const UniqueFd connection, Connect(socket, deadline));
  RETURN_IF_ERROR(SendPacket(connection.get(), EncodeRequest(static_cast<uint32_t>(st.st_size)),
                             {annotations_fd}));
  RETURN_IF_ERROR(SetDeadline(connection.get(), deadline));
  Secret reply(kMaxReplyBytes);
  ASSIGN_OR_RETURN(const size_t size, ReceivePacketInto(connection.get(), reply.bytes()));
  reply.Truncate(size);
  return reply;
}

}  // namespace

absl::StatusOr<UnwrappedLayer> Unwrap(const std::filesystem::path& socket, int annotations_fd,
                                      int timeout_ms) {
  const absl::StatusOr<Secret> reply =
      Exchange(socket, annotations_fd, Clock::now() + std::chrono::milliseconds(timeout_ms));
  if (!reply.ok()) return Annotate(reply.status(), fmt::format("key provider {}", socket.string()));
  return DecodeReply(reply->bytes());
}

}  // namespace kapsule::keyprovider
