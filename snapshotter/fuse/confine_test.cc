// In processes of their own; needs root.
#include "snapshotter/fuse/confine.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>

#include "core/base/unix_socket.h"

namespace kapsule::fuse {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr uid_t kUid = 12'345;
constexpr gid_t kGid = 12'346;

std::vector<std::string> LinesOf(const std::string& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Mount point and options of each line of /proc/PID/mountinfo.
std::vector<std::string> MountsOf(const std::string& pid) {
  std::vector<std::string> mounts;
  for (const std::string& line : LinesOf("/proc/" + pid + "/mountinfo")) {
    std::istringstream words(line);
    std::string skip, point, options;
    words >> skip >> skip >> skip >> skip >> point >> options;
    mounts.push_back(point + " " + options);
  }
  return mounts;
}

// A process that confines itself, runs `body` and waits to be looked at.
class Confined {
 public:
  Confined(const ConfineOptions& options, const std::function<void()>& body) {
    EXPECT_EQ(pipe2(ready_, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ != 0) {
      close(ready_[1]);
      EXPECT_EQ(read(ready_[0], &ok_, 1), 1);
      return;
    }
    const absl::Status status = Confine(options);
    EXPECT_TRUE(status.ok()) << status;
    if (status.ok()) body();
    const char ok = ::testing::Test::HasFailure() ? 'n' : 'y';
    if (write(ready_[1], &ok, 1) != 1) _exit(2);
    for (;;) pause();
  }
  ~Confined() {
    EXPECT_EQ(ok_, 'y');
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(ready_[0]);
  }
  std::string pid() const { return std::to_string(pid_); }
  fs::path root() const { return "/proc/" + pid() + "/root"; }

 private:
  int ready_[2];
  pid_t pid_;
  char ok_ = 'n';
};

class ConfineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(geteuid(), 0u) << "this test needs root";
    std::string name = "/tmp/kapsule-confine-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    ASSERT_EQ(chmod(name.c_str(), 0755), 0);
    ASSERT_TRUE(MakeDirs(folder_ / "keys" / "below", 0755).ok());
    listener_ = ListenUnix(socket(), SOCK_SEQPACKET, 0666).value();
    ASSERT_TRUE(WriteFileAtomic(folder_ / "keys" / "file", AsBytes("x"), 0666).ok());
    before_ = MountsOf("self");
  }
  void TearDown() override {
    EXPECT_EQ(MountsOf("self"), before_);  // nothing of it is seen outside
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }
  fs::path socket() const { return folder_ / "keys" / "keys.sock"; }
  ConfineOptions Options() const { return {kUid, kGid, socket()}; }
  absl::Status StatusOf(const ConfineOptions& options) {
    int wire[2];
    EXPECT_EQ(pipe2(wire, O_CLOEXEC), 0);
    const pid_t child = fork();
    if (child == 0) {
      const absl::Status status = Confine(options);
      const std::string text = fmt::format("{}", Message(status));
      if (write(wire[1], text.data(), text.size()) < 0) _exit(255);
      _exit(static_cast<int>(status.code()));
    }
    close(wire[1]);
    char text[1000];
    const ssize_t n = read(wire[0], text, sizeof(text));
    close(wire[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return {static_cast<absl::StatusCode>(WEXITSTATUS(status)),
            std::string(text, static_cast<size_t>(std::max<ssize_t>(n, 0)))};
  }

  fs::path folder_;
  UniqueFd listener_;
  std::vector<std::string> before_;
};

TEST_F(ConfineTest, OnlyTheSocketsFolderIsLeftOfTheFileSystem) {
  const Confined process(Options(), [&] {
    EXPECT_TRUE(ConnectUnix(socket(), SOCK_SEQPACKET).ok());
    for (const char* path : {"/proc", "/etc/passwd", "/dev/null", "/sys", "/usr", "/..//etc"})
      EXPECT_EQ(access(path, F_OK), -1) << path;
    EXPECT_EQ(open((folder_ / "keys" / "file").c_str(), O_WRONLY), -1);
    EXPECT_EQ(errno, EROFS);
    EXPECT_EQ(mkdir("/new", 0755), -1);
    EXPECT_EQ(errno, EROFS);
  });
  const std::string keys = (folder_ / "keys").string();
  EXPECT_THAT(MountsOf(process.pid()),
              UnorderedElementsAre("/ ro,nosuid,nodev,noexec,relatime",
                                   keys + " ro,nosuid,nodev,noexec,relatime"));
  std::vector<std::string> seen;
  for (const auto& entry : fs::recursive_directory_iterator(process.root()))
    seen.push_back("/" + entry.path().lexically_relative(process.root()).string());
  EXPECT_THAT(seen, UnorderedElementsAre("/tmp", folder_.string(), keys, keys + "/below",
                                         keys + "/file", keys + "/keys.sock"));
}

TEST_F(ConfineTest, ASocketMadeAnewIsFound) {
  int confined[2], made[2];
  ASSERT_EQ(pipe2(confined, O_CLOEXEC) | pipe2(made, O_CLOEXEC), 0);
  const pid_t child = fork();
  if (child == 0) {
    char go;
    if (!Confine(Options()).ok() || write(confined[1], "c", 1) != 1 || read(made[0], &go, 1) != 1)
      _exit(2);
    _exit(ConnectUnix(socket(), SOCK_SEQPACKET).ok() ? 0 : 1);
  }
  close(confined[1]);
  char byte;
  EXPECT_EQ(read(confined[0], &byte, 1), 1);
  listener_.reset();
  unlink(socket().c_str());
  listener_ = ListenUnix(socket(), SOCK_SEQPACKET, 0666).value();
  EXPECT_EQ(write(made[1], "m", 1), 1);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  for (const int fd : {confined[0], made[0], made[1]}) close(fd);
}

TEST_F(ConfineTest, ALinkInTheFoldersPathIsFollowed) {
  fs::create_directory_symlink(folder_ / "keys", folder_ / "link");
  ConfineOptions options = Options();
  options.keyprovider_socket = folder_ / "link" / "keys.sock";
  const Confined process(
      options, [&] { EXPECT_TRUE(ConnectUnix(options.keyprovider_socket, SOCK_SEQPACKET).ok()); });
}

TEST_F(ConfineTest, NoNetworkNoRightsNoDumps) {
  const Confined process(Options(), [] {
    EXPECT_EQ(prctl(PR_GET_DUMPABLE), 0);
    EXPECT_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
    EXPECT_EQ(setuid(0), -1);
  });
  const std::vector<std::string> devices = LinesOf("/proc/" + process.pid() + "/net/dev");
  ASSERT_EQ(devices.size(), 3u);  // two of headings
  EXPECT_THAT(devices[2], HasSubstr("lo:"));
  std::string limits;
  for (const std::string& line : LinesOf("/proc/" + process.pid() + "/limits"))
    limits += line + "\n";
  EXPECT_THAT(limits, HasSubstr("Max core file size        0                    0 "));
}

TEST_F(ConfineTest, WhatIsWrongIsSaid) {
  ConfineOptions options = Options();
  options.keyprovider_socket = folder_ / "none" / "keys.sock";
  const absl::Status none = StatusOf(options);
  EXPECT_TRUE(absl::IsNotFound(none)) << none;
  EXPECT_THAT(Message(none), HasSubstr((folder_ / "none").string()));
  EXPECT_THAT(Message(none), HasSubstr("RuntimeDirectory"));
  for (const fs::path& bad : {fs::path("keys.sock"), fs::path("/keys.sock"), fs::path("keys/sock"),
                              folder_ / "keys" / ".." / "keys" / "keys.sock"}) {
    options.keyprovider_socket = bad;
    EXPECT_TRUE(absl::IsInvalidArgument(StatusOf(options))) << bad;
  }
  options.keyprovider_socket = folder_ / "keys" / "file" / "keys.sock";
  EXPECT_FALSE(StatusOf(options).ok());
  options = Options();
  options.uid = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(StatusOf(options)));
}

}  // namespace
}  // namespace kapsule::fuse
