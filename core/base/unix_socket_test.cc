#include "core/base/unix_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace kapsule {
namespace {

struct Pair {
  Pair() {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) abort();
    a = UniqueFd(fds[0]);
    b = UniqueFd(fds[1]);
  }
  UniqueFd a, b;
};

TEST(UnixSocketTest, PacketsCarryBytesAndDescriptors) {
  Pair pair;
  UniqueFd memfd = SealedMemfd("x", AsBytes("inside")).value();
  ASSERT_TRUE(SendPacket(pair.a.get(), AsBytes("hi"), {memfd.get()}).ok());
  const Packet packet = ReceivePacket(pair.b.get()).value();
  EXPECT_EQ(packet.bytes, "hi");
  ASSERT_EQ(packet.fds.size(), 1u);
  EXPECT_EQ(ReadSealedMemfd(packet.fds[0].get(), 100).value(), "inside");
  EXPECT_NE(fcntl(packet.fds[0].get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(UnixSocketTest, AClosedPeerIsUnavailable) {
  Pair pair;
  pair.a.reset();
  EXPECT_EQ(ReceivePacket(pair.b.get()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(SendPacket(pair.b.get(), AsBytes("x")).code(), absl::StatusCode::kUnavailable);
}

TEST(UnixSocketTest, PacketsTooLongForTheReaderAreRefused) {
  Pair pair;
  ASSERT_TRUE(SendPacket(pair.a.get(), AsBytes("0123456789")).ok());
  std::byte out[4];
  EXPECT_EQ(ReceivePacketInto(pair.b.get(), out).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(UnixSocketTest, ReceivingTimesOut) {
  Pair pair;
  ASSERT_TRUE(SetTimeout(pair.a.get(), 20).ok());
  EXPECT_EQ(ReceivePacket(pair.a.get()).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(UnixSocketTest, StaleSocketsAreReplacedAndLiveOnesAreNot) {
  char name[] = "/tmp/kapsule-socket-XXXXXX";
  const std::filesystem::path folder = mkdtemp(name);
  const auto path = folder / "s";
  {
    UniqueFd first = ListenUnix(path, SOCK_STREAM, 0600).value();
    EXPECT_EQ(ListenUnix(path, SOCK_STREAM, 0600).status().code(),
              absl::StatusCode::kAlreadyExists);
    UniqueFd client = ConnectUnix(path, SOCK_STREAM).value();
    EXPECT_EQ(PeerOf(client.get()).value().uid, geteuid());
  }
  EXPECT_EQ(ConnectUnix(path, SOCK_STREAM).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(ListenUnix(path, SOCK_STREAM, 0600).ok());
  EXPECT_EQ(ListenUnix(folder / std::string(120, 'x'), SOCK_STREAM, 0600).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace kapsule
