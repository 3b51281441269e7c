// Each call is made by a process of its own under the filter.
#include "snapshotter/fuse/seccomp.h"

#include <absl/synchronization/mutex.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <thread>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/unix_socket.h"
#include "snapshotter/fuse/forbidden_call.h"

namespace kapsule::fuse {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

struct Outcome {
  int status = -1;  // of waitpid(2)
  std::string errors;
};

Outcome RunFiltered(const std::function<void()>& body) {
  int wire[2];
  EXPECT_EQ(pipe2(wire, O_CLOEXEC), 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(wire[1], STDERR_FILENO);
    absl::Status status = InitLog("kapsule-fuse", "info");
    if (status.ok()) status = ReadFilesOfLibraries();
    if (status.ok()) status = AllowOnlyNeededCalls();
    EXPECT_TRUE(status.ok()) << status;
    body();
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  close(wire[1]);
  Outcome outcome;
  char piece[500];
  for (ssize_t n; (n = read(wire[0], piece, sizeof(piece))) > 0;)
    outcome.errors.append(piece, static_cast<size_t>(n));
  close(wire[0]);
  waitpid(child, &outcome.status, 0);
  return outcome;
}

// The call is refused, its name is in the log, and the process goes on.
void ExpectForbidden(const std::string& name, const std::function<long()>& call) {
  const Outcome outcome = RunFiltered([&] {
    EXPECT_EQ(call(), -1);
    EXPECT_EQ(errno, EPERM);
  });
  EXPECT_EQ(outcome.status, 0) << name << ": " << outcome.errors;
  EXPECT_THAT(outcome.errors, HasSubstr("error: forbidden system call " + name + " ("));
}

TEST(SeccompTest, PathsProgramsAndProcessesAreForbidden) {
  ExpectForbidden("openat", [] { return open("/etc/passwd", O_RDONLY); });
  ExpectForbidden("openat", [] { return open(".", O_PATH); });
  ExpectForbidden("newfstatat", [] {
    struct stat st;
    return stat("/", &st);
  });
  ExpectForbidden("unlink", [] { return unlink("/tmp/x"); });
  ExpectForbidden("execve", [] { return execl("/bin/true", "true", nullptr); });
  ExpectForbidden("clone", [] { return fork(); });
  ExpectForbidden("ptrace", [] { return ptrace(PTRACE_TRACEME); });
  ExpectForbidden("mount", [] { return mount("x", "/", "tmpfs", 0, nullptr); });
  ExpectForbidden("kill", [] { return kill(1, 0); });
  ExpectForbidden("tgkill", [] { return syscall(SYS_tgkill, 1, 1, SIGKILL); });
  ExpectForbidden("setuid", [] { return syscall(SYS_setuid, 0); });
  ExpectForbidden("ioctl", [] { return ioctl(1, FIONREAD, nullptr); });
  ExpectForbidden("io_uring_setup", [] { return syscall(SYS_io_uring_setup, 1, nullptr); });
  ExpectForbidden("bpf", [] { return syscall(SYS_bpf, 0, nullptr, 0); });
  ExpectForbidden("process_vm_readv",
                  [] { return syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0); });
}

TEST(SeccompTest, OnlyUnixSockets) {
  ExpectForbidden("socket", [] { return ::socket(AF_INET, SOCK_STREAM, 0); });
  ExpectForbidden("socket", [] { return ::socket(AF_INET6, SOCK_DGRAM, 0); });
  ExpectForbidden("socket", [] { return ::socket(AF_NETLINK, SOCK_RAW, 0); });
  ExpectForbidden("socket", [] { return ::socket(AF_VSOCK, SOCK_STREAM, 0); });
  ExpectForbidden("bind", [] { return bind(0, nullptr, 0); });
}

TEST(SeccompTest, NoExecutableMemory) {
  ExpectForbidden("mmap", [] {
    return reinterpret_cast<long>(
        mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  });
  ExpectForbidden("mprotect", [] {
    void* const page =
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mprotect(page, 4096, PROT_READ | PROT_EXEC);
  });
  ExpectForbidden("prctl", [] { return prctl(PR_SET_DUMPABLE, 1); });
}

TEST(SeccompTest, EachForbiddenCallIsLoggedOnceAlsoFromThreads) {
  const Outcome outcome = RunFiltered([] {
    for (int i = 0; i < 3; ++i) std::thread([] { EXPECT_EQ(open("/", O_RDONLY), -1); }).join();
  });
  EXPECT_EQ(outcome.status, 0);
  const size_t first = outcome.errors.find("forbidden system call openat");
  ASSERT_NE(first, std::string::npos);
  EXPECT_EQ(outcome.errors.find("forbidden", first + 1), std::string::npos);
}

TEST(SeccompTest, TheLineLooksLikeTheLogs) {
  const auto forbidden = [] { (void)!open("/", O_RDONLY); };
  unsetenv("JOURNAL_STREAM");
  setenv("TZ", "XXX-05:30", 1);
  const Outcome timed = RunFiltered([&] {
    log::error("as the log writes it");
    forbidden();
  });
  const size_t second = timed.errors.find('\n') + 1;
  const std::string time = "[0-9]+-[0-9]+-[0-9]+T[0-9]+:[0-9]+:[0-9]+\\.[0-9]+ ";
  EXPECT_THAT(timed.errors.substr(0, second),
              MatchesRegex(time + "kapsule-fuse error: as the log writes it\n"));
  EXPECT_THAT(timed.errors.substr(second),
              MatchesRegex(time + "kapsule-fuse error: forbidden system call openat "
                                  "\\([0-9]+\\) refused; .*\n"));
  // Day and hour; a wrong time zone would show.
  EXPECT_EQ(timed.errors.substr(0, 13), timed.errors.substr(second, 13));
  setenv("JOURNAL_STREAM", "8:1", 1);
  const Outcome journal = RunFiltered(forbidden);
  unsetenv("JOURNAL_STREAM");
  unsetenv("TZ");
  EXPECT_THAT(journal.errors, MatchesRegex("error: forbidden system call openat .*\n"));
}

TEST(SeccompTest, ACallWithoutANameHasItsNumber) {
  EXPECT_THAT(RunFiltered([] { syscall(499); }).errors, HasSubstr("of unknown name (499)"));
}

TEST(SeccompTest, WhatServingTakesIsAllowed) {
  const Outcome outcome = RunFiltered([] {
    const UniqueFd memory = SealedMemfd("x", AsBytes("bytes")).value();
    EXPECT_EQ(ReadSealedMemfd(memory.get(), 100).value(), "bytes");
    EXPECT_TRUE(memory.Duplicate().ok());
    const int flags = fcntl(memory.get(), F_GETFL);
    EXPECT_EQ(fcntl(memory.get(), F_SETFL, flags & ~O_DIRECT), 0);
    int pair[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    EXPECT_TRUE(SetTimeout(pair[0], 1000).ok());
    EXPECT_TRUE(SendPacket(pair[0], AsBytes("x"), {memory.get()}).ok());
    EXPECT_EQ(ReceivePacket(pair[1]).value().fds.size(), 1u);
    EXPECT_FALSE(ConnectUnix("/tmp/none", SOCK_SEQPACKET).ok());
    const UniqueFd event(eventfd(0, EFD_CLOEXEC));
    pollfd polled{event.get(), POLLIN, 0};
    EXPECT_EQ(poll(&polled, 1, 1), 0);
    // A thread with its name and stack, memory that grows and shrinks, an error
    // thrown.
    std::thread([] {
      pthread_setname_np(pthread_self(), "reader");
      for (int i = 0; i < 100; ++i) {
        std::vector<std::string> pieces(static_cast<size_t>(i) * 5, std::string(9000, 'x'));
        EXPECT_NE(std::string(size_t{1} << 22, 'y').back(), 'x');
      }
      try {
        throw std::bad_alloc();
      } catch (const std::bad_alloc&) {
      }
      log::error("a line");
    }).join();
  });
  EXPECT_EQ(outcome.status, 0) << outcome.errors;
}

TEST(SeccompTest, ThreadsMayMeetAtALock) {
  const Outcome outcome = RunFiltered([] {
    absl::Mutex mu;
    std::vector<std::thread> threads;  // wait in a row, which looks at priorities
    mu.Lock();
    for (int t = 0; t < 6; ++t)
      threads.emplace_back([&] {
        absl::MutexLock lock(&mu);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    mu.Unlock();
    for (std::thread& thread : threads) thread.join();
  });
  EXPECT_EQ(outcome.status, 0) << outcome.errors;
}

TEST(SeccompTest, AnAbortIsAnAbort) {
  const Outcome outcome = RunFiltered([] { std::abort(); });
  EXPECT_TRUE(WIFSIGNALED(outcome.status));
  EXPECT_EQ(WTERMSIG(outcome.status), SIGABRT);
}

}  // namespace
}  // namespace kapsule::fuse
