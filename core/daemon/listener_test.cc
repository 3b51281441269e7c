#include "core/daemon/listener.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

namespace kapsule::daemon {
namespace {

class ListenerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
    path_ = folder_ + "/socket";
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  std::unique_ptr<Listener> StartEcho() {
    return Listener::Start(path_, SOCK_SEQPACKET, 0666,
                           [](UniqueFd connection, const PeerCredentials& peer) {
                             (void)SendPacket(connection.get(),
                                              AsBytes(fmt::format("{} {}", peer.uid, peer.pid)));
                           })
        .value();
  }
  std::string folder_ = "/tmp/kapsule-listener-XXXXXX";
  std::string path_;
};

TEST_F(ListenerTest, HandlersGetThePeersCredentials) {
  const std::unique_ptr<Listener> listener = StartEcho();
  struct stat st;
  ASSERT_EQ(stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0666u);
  for (int i = 0; i < 3; ++i) {
    const UniqueFd connection = ConnectUnix(path_, SOCK_SEQPACKET).value();
    EXPECT_EQ(ReceivePacket(connection.get()).value().bytes,
              fmt::format("{} {}", getuid(), getpid()));
  }
}

TEST_F(ListenerTest, DestructionRemovesTheSocketAndAllowsAnother) {
  for (int i = 0; i < 2; ++i) {
    const std::unique_ptr<Listener> listener = StartEcho();
    EXPECT_TRUE(std::filesystem::exists(path_));
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(ListenerTest, ASocketThatTookThePlaceStays) {
  UniqueFd other;
  {
    const std::unique_ptr<Listener> listener = StartEcho();
    ASSERT_EQ(unlink(path_.c_str()), 0);
    other = ListenUnix(path_, SOCK_SEQPACKET, 0600).value();
  }
  EXPECT_TRUE(std::filesystem::exists(path_));
}

TEST_F(ListenerTest, TwoListenersDoNotShareAPath) {
  const std::unique_ptr<Listener> listener = StartEcho();
  EXPECT_TRUE(absl::IsAlreadyExists(
      Listener::Start(path_, SOCK_SEQPACKET, 0666, [](UniqueFd, const PeerCredentials&) {
      }).status()));
}

}  // namespace
}  // namespace kapsule::daemon
