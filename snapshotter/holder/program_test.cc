// kapsule-holder itself, as kapsule-snapshotter starts it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/unix_socket.h"
#include "core/control/holder_wire.h"

namespace kapsule::holder {
namespace {

using control::Holder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::filesystem::path Program() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / "kapsule-holder";
}

class HolderProgramTest : public testing::Test {
 protected:
  HolderProgramTest() { ASSERT_TRUE_(mkdtemp(folder_.data()) != nullptr); }
  ~HolderProgramTest() override {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Wait();
    }
    unsetenv("NOTIFY_SOCKET");
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }
  static void ASSERT_TRUE_(bool value) {
    if (!value) abort();
  }

  // The child finds `given` from descriptor 3 on, and then the listening socket.
  void Start(std::vector<std::string> flags = {"--uid", "65533", "--gid", "65533"},
             const std::vector<int>& given = {}) {
    const UniqueFd listening = ListenUnix(folder_ + "/s", SOCK_SEQPACKET, 0600).value();
    const int at = 3 + static_cast<int>(given.size());
    flags.insert(flags.begin(), {Program().string(), "--listen-fd", std::to_string(at)});
    std::vector<char*> argv;
    for (std::string& flag : flags) argv.push_back(flag.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    // Out of the way first, so that no dup2() hits one that is still wanted.
    std::vector<int> high;
    for (const int fd : given) high.push_back(fcntl(fd, F_DUPFD, 300));
    high.push_back(fcntl(listening.get(), F_DUPFD, 300));
    for (size_t i = 0; i < high.size(); ++i) dup2(high[i], 3 + static_cast<int>(i));
    close_range(static_cast<unsigned>(at) + 1, ~0U, 0);
    rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (soft_limit_ != 0) limit.rlim_cur = soft_limit_;
    setrlimit(RLIMIT_NOFILE, &limit);
    execv(argv[0], argv.data());
    _exit(127);
  }
  // The next child's service manager, on which nothing is done with what comes.
  UniqueFd Manager() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = folder_ + "/notify";
    path.copy(address.sun_path, path.size());
    UniqueFd manager(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(bind(manager.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(chmod(path.c_str(), 0666), 0);
    EXPECT_EQ(chmod(folder_.c_str(), 0711), 0);
    EXPECT_TRUE(SetTimeout(manager.get(), 30'000).ok());
    setenv("NOTIFY_SOCKET", path.c_str(), 1);
    return manager;
  }
  Holder Connect() { return Holder(ConnectUnix(folder_ + "/s", SOCK_SEQPACKET).value()); }
  int Wait() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  std::string Proc(const char* name) {
    const UniqueFd file = OpenFile(fmt::format("/proc/{}/{}", pid_, name), O_RDONLY).value();
    std::string text(8192, '\0');
    text.resize(static_cast<size_t>(std::max<ssize_t>(0, read(file.get(), text.data(), 8192))));
    return text;
  }

  std::string folder_ = "/tmp/kapsule-holder-XXXXXX";
  pid_t pid_ = -1;
  rlim_t soft_limit_ = 0;  // the child's; 0: as here
};

// Root in a container often may not.
bool MayBeSpared() {
  const pid_t child = fork();
  if (child == 0) {
    const auto file = OpenFile("/proc/self/oom_score_adj", O_WRONLY);
    _exit(file.ok() && WriteAll(file->get(), AsBytes("-900")).ok() ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  return status == 0;
}

TEST_F(HolderProgramTest, ItHoldsAsAUserWithoutRights) {
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  GTEST_SKIP() << "a sanitizer takes memory, and system calls that are not on the list";
#endif
#endif
  ASSERT_EQ(geteuid(), 0u) << "run this as root";
  Start();
  const Holder holder = Connect();
  ASSERT_EQ(holder.Put("fuse", {0}), absl::OkStatus());
  const std::string status = Proc("status");
  for (const char* line :
       {"Uid:\t65533\t65533\t65533\t65533", "Groups:\t \n", "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1"})
    EXPECT_THAT(status, HasSubstr(line));
  EXPECT_TRUE(!MayBeSpared() || Proc("oom_score_adj") == "-900\n");
  EXPECT_THAT(Proc("limits"), HasSubstr("Max core file size        0                    0"));
  // 16 MiB would still be little; it has been 7.
  int kib = 0;
  ASSERT_EQ(std::sscanf(status.c_str() + status.find("VmHWM:"), "VmHWM: %d kB", &kib), 1);
  EXPECT_LT(kib, 16 << 10);
}

TEST_F(HolderProgramTest, SignalsOfATerminalDoNotEndItAndSigtermDoes) {
  Start();
  ASSERT_TRUE(Connect().Put("fuse", {0}).ok());
  for (const int number : {SIGINT, SIGHUP, SIGQUIT, SIGPIPE}) kill(pid_, number);
  EXPECT_THAT(Connect().List("").value(), ElementsAre("fuse"));
  kill(pid_, SIGTERM);
  EXPECT_EQ(Wait(), 0);
}

TEST_F(HolderProgramTest, QuitEndsIt) {
  Start();
  ASSERT_TRUE(Connect().Quit().ok());
  EXPECT_EQ(Wait(), 0);
}

TEST_F(HolderProgramTest, ItHoldsThreeThousandDescriptorsWhateverLimitItWasGiven) {
  soft_limit_ = 256;
  Start();
  const Holder holder = Connect();
  for (int i = 0; i < 1000; ++i)
    ASSERT_TRUE(holder.Put(fmt::format("view/{}", i), {0, 1, 2}).ok()) << i;
  EXPECT_EQ(holder.List("view/").value().size(), 1000u);
}

TEST_F(HolderProgramTest, WrongUsageIsSaid) {
  Start({"--uid", "65533"});
  EXPECT_EQ(Wait(), 106);  // CLI11: a required option is missing
  Start({"--uid", "0", "--gid", "0"});
  EXPECT_EQ(Wait(), 1);
  Start({"--uid", "65533", "--gid", "65533", "--restore-fds", "9"});
  EXPECT_EQ(Wait(), 2);
  Start({"--uid", "65533", "--gid", "65533", "--abandon-after-ms", "-1"});
  EXPECT_EQ(Wait(), 105);  // CLI11: out of range
}

const std::vector<std::string> kShortlyAbandoned = {
    "--uid", "65533", "--gid", "65533", "--abandon-after-ms", "2000"};

TEST_F(HolderProgramTest, WhatItHeldIsClosedWhenNobodyWasThereForTooLong) {
  Start(kShortlyAbandoned);
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd out(ends[0]);
  UniqueFd in(ends[1]);
  auto holder = std::make_unique<Holder>(ConnectUnix(folder_ + "/s", SOCK_SEQPACKET).value());
  ASSERT_TRUE(holder->Put("fuse", {in.get()}).ok());
  in.reset();
  sleep(4);
  EXPECT_TRUE(holder->List("").ok());
  holder.reset();
  char byte;
  EXPECT_EQ(read(out.get(), &byte, 1), 0);
  EXPECT_EQ(Wait(), 0);
  EXPECT_FALSE(ConnectUnix(folder_ + "/s", SOCK_SEQPACKET).ok());
}

// The FUSE connection first: one message also reaches a service manager that hangs.
TEST_F(HolderProgramTest, AnAbandonedOneTakesWhatItHeldOutOfTheServiceManagersStore) {
  const UniqueFd manager = Manager();
  Start(kShortlyAbandoned);
  ASSERT_TRUE(Connect().Put("fuse", {0}).ok());
  ASSERT_TRUE(Connect().Put("view/12", {0, 1}).ok());
  for (int i = 0; i < 3; ++i)
    EXPECT_THAT(ReceivePacket(manager.get()).value().bytes, HasSubstr("FDSTORE=1\n"));
  EXPECT_EQ(Wait(), 0);
  std::vector<std::string> removed;
  for (int i = 0; i < 3; ++i) removed.push_back(ReceivePacket(manager.get()).value().bytes);
  EXPECT_THAT(removed,
              ElementsAre("FDSTOREREMOVE=1\nFDNAME=fuse.01", "FDSTOREREMOVE=1\nFDNAME=view/12.02",
                          "FDSTOREREMOVE=1\nFDNAME=view/12.12"));
  EXPECT_EQ(recv(manager.get(), nullptr, 0, MSG_DONTWAIT), -1);
}

TEST_F(HolderProgramTest, AnAbandonedOneEndsAlsoWhereTheServiceManagerHasGone) {
  Manager();
  Start(kShortlyAbandoned);
  ASSERT_TRUE(Connect().Put("fuse", {0}).ok());
  EXPECT_EQ(Wait(), 0);
}

// A service that is stopped and started again by a service manager.
TEST_F(HolderProgramTest, TheServiceManagersStoreOutlivesEverything) {
  const UniqueFd manager = Manager();
  Start();
  const UniqueFd image = SealedMemfd("a", AsBytes("image")).value();
  const UniqueFd blob = SealedMemfd("b", AsBytes("blob")).value();
  ASSERT_TRUE(Connect().Put("view/12", {image.get(), blob.get()}).ok());
  std::vector<UniqueFd> stored;
  std::string names;
  for (int i = 0; i < 2; ++i) {
    Packet packet = ReceivePacket(manager.get()).value();
    ASSERT_EQ(packet.fds.size(), 1u);
    const size_t name = packet.bytes.find("FDNAME=") + 7;
    names = packet.bytes.substr(name, packet.bytes.find('\n', name) - name) +
            (names.empty() ? "" : ":") + names;
    stored.insert(stored.begin(), std::move(packet.fds[0]));
  }
  EXPECT_EQ(names, "view/12.12:view/12.02");
  kill(pid_, SIGTERM);
  EXPECT_EQ(Wait(), 0);
  EXPECT_EQ(recv(manager.get(), nullptr, 0, MSG_DONTWAIT), -1) << "its end empties the store";

  setenv("LISTEN_FDNAMES", names.c_str(), 1);
  Start({"--uid", "65533", "--gid", "65533", "--restore-fds", "2"},
        {stored[0].get(), stored[1].get()});
  unsetenv("LISTEN_FDNAMES");
  const Holder holder = Connect();
  const std::vector<UniqueFd> got = holder.Get("view/12").value();
  ASSERT_EQ(got.size(), 2u);
  EXPECT_EQ(ReadSealedMemfd(got[0].get(), 100).value(), "image");
  EXPECT_EQ(ReadSealedMemfd(got[1].get(), 100).value(), "blob");
  EXPECT_EQ(recv(manager.get(), nullptr, 0, MSG_DONTWAIT), -1) << "stored twice";
  EXPECT_TRUE(holder.Quit().ok());
  EXPECT_EQ(Wait(), 0);
  EXPECT_THAT(ReceivePacket(manager.get()).value().bytes, HasSubstr("FDSTOREREMOVE=1"));
}

}  // namespace
}  // namespace kapsule::holder
