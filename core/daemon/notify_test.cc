#include "core/daemon/notify.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "core/base/file.h"

namespace kapsule::daemon {
namespace {

TEST(NotifyTest, SystemdHearsEachState) {
  std::string folder = "/tmp/kapsule-notify-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, (folder + "/socket").c_str());
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(bind(socket_fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  setenv("NOTIFY_SOCKET", address.sun_path, 1);
  const auto received = [&] {
    char text[256];
    const ssize_t n = recv(socket_fd.get(), text, sizeof(text), MSG_DONTWAIT);
    return std::string(text, static_cast<size_t>(std::max<ssize_t>(n, 0)));
  };
  NotifyReady();
  EXPECT_EQ(received(), "READY=1");
  NotifyReloading();
  EXPECT_THAT(received(), ::testing::MatchesRegex("RELOADING=1\nMONOTONIC_USEC=[0-9]+"));
  NotifyStatus("3 keys");
  EXPECT_EQ(received(), "STATUS=3 keys");
  NotifyStopping();
  EXPECT_EQ(received(), "STOPPING=1");
  unsetenv("NOTIFY_SOCKET");
  NotifyReady();
  EXPECT_EQ(received(), "");
  EXPECT_TRUE(RemoveTree(folder).ok());
}

TEST(NotifyTest, PassedDescriptorsAreThoseOfThisProcess) {
  EXPECT_THAT(PassedDescriptors(), ::testing::IsEmpty());
  setenv("LISTEN_FDS", "2", 1);
  setenv("LISTEN_PID", std::to_string(getppid()).c_str(), 1);
  EXPECT_THAT(PassedDescriptors(), ::testing::IsEmpty());
  setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
  UniqueFd third(dup2(STDERR_FILENO, 3)), fourth(dup2(STDERR_FILENO, 4));
  EXPECT_THAT(PassedDescriptors(), ::testing::ElementsAre(3, 4));
  EXPECT_EQ(fcntl(4, F_GETFD), FD_CLOEXEC);
  for (const char* const bad : {"", "-1", "2x", "99999999999"}) {
    setenv("LISTEN_FDS", bad, 1);
    EXPECT_THAT(PassedDescriptors(), ::testing::IsEmpty()) << bad;
  }
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_PID");
}

}  // namespace
}  // namespace kapsule::daemon
