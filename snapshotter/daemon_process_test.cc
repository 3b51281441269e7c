#include "snapshotter/daemon_process.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "snapshotter/daemon_process_activity.h"

namespace kapsule::snapshotter {
namespace {

std::unique_ptr<DaemonProcess> Sleeper() {
  return DaemonProcess::Start("/bin/sleep", {"1000"}, {}).value();
}

UniqueFd PidfdOf(pid_t pid) { return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))); }

bool IsThere(pid_t pid) { return std::filesystem::exists("/proc/" + std::to_string(pid)); }

TEST(DaemonProcessTest, TheChildGetsTheDescriptorsInOrderAndNoOther) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd out(ends[0]);
  UniqueFd in(ends[1]);
  const UniqueFd inherited(open("/dev/null", O_RDONLY));  // not close-on-exec
  const UniqueFd zero(open("/dev/zero", O_RDONLY | O_CLOEXEC));
  // Also where each one lies in the other's place.
  ASSERT_EQ(dup3(zero.get(), 204, O_CLOEXEC), 204);
  const UniqueFd high(204);
  auto process = DaemonProcess::Start(
      "/bin/sh", {"-c", "readlink /proc/$$/fd/4 >&3; ls /proc/$$/fd | tr '\\n' ' ' >&3"},
      {in.get(), high.get()});
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE((*process)->WaitForEnd(10'000));
  in.reset();
  char text[200] = {};
  std::string said;
  while (read(out.get(), text, sizeof(text) - 1) > 0) {
    said += text;
    memset(text, 0, sizeof(text));
  }
  EXPECT_EQ(said.substr(0, said.find('\n')), "/dev/zero");
  EXPECT_EQ(said.substr(said.find('\n') + 1).substr(0, 10), "0 1 2 3 4 ");
  EXPECT_EQ((*process)->End(), "exit status 0");
}

TEST(DaemonProcessTest, AMissingProgramIsNotFound) {
  EXPECT_EQ(DaemonProcess::Start("/no/such/program", {}, {}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(DaemonProcessTest, OneIsFoundByItsNumberWhereItRunsTheProgram) {
  const std::unique_ptr<DaemonProcess> process = Sleeper();
  EXPECT_EQ(DaemonProcess::Find(process->pid(), "kapsule-holder").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(process->WaitForEnd(0));
  auto found = DaemonProcess::Find(process->pid(), "sleep");
  for (int i = 0; i < 3000 && !found.ok(); ++i) {  // it may not have begun
    absl::SleepFor(absl::Milliseconds(10));
    found = DaemonProcess::Find(process->pid(), "sleep");
  }
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ((*found)->pid(), process->pid());
  EXPECT_EQ((*found)->End(), "signal 9");
  EXPECT_EQ(DaemonProcess::Find(process->pid(), "sleep").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(DaemonProcessTest, WhatAProcessDoesIsSeen) {
  const auto begin = [](const std::string& script) {
    return DaemonProcess::Start("/bin/sh", {"-c", script}, {}).value();
  };
  const auto activity = [](const std::unique_ptr<DaemonProcess>& process) {
    return ActivityOf(process->pid()).value();
  };
  const std::unique_ptr<DaemonProcess> busy = begin("while :; do :; done");
  const ProcessActivity before = activity(busy);
  absl::SleepFor(absl::Milliseconds(100));
  EXPECT_FALSE(activity(busy).all.StillSince(before.all));
  EXPECT_FALSE(activity(busy).main.StillSince(before.main));
  ASSERT_EQ(kill(busy->pid(), SIGSTOP), 0);
  ASSERT_EQ(waitpid(busy->pid(), nullptr, WUNTRACED), busy->pid());
  const ProcessActivity stopped = activity(busy);
  EXPECT_TRUE(activity(busy).all.StillSince(stopped.all));
  EXPECT_FALSE(stopped.traced);
  ASSERT_EQ(ptrace(PTRACE_SEIZE, busy->pid(), nullptr, nullptr), 0);
  EXPECT_TRUE(activity(busy).traced);
  busy->End();
  EXPECT_FALSE(ActivityOf(busy->pid()).ok());
}

TEST(DaemonProcessTest, ItIsKilledAndReapedAtTheEnd) {
  std::unique_ptr<DaemonProcess> process = Sleeper();
  const pid_t pid = process->pid();
  EXPECT_FALSE(process->WaitForEnd(0));
  EXPECT_EQ(getsid(pid), pid);  // a session of its own
  EXPECT_EQ(process->End(), "signal 9");
  EXPECT_FALSE(IsThere(pid));
}

TEST(DaemonProcessTest, WhatIsLeftRunsOnAndIsAdoptedByItsPidfd) {
  std::unique_ptr<DaemonProcess> first = Sleeper();
  const pid_t pid = first->pid();
  UniqueFd pidfd = PidfdOf(pid);
  first->Leave();
  first.reset();
  ASSERT_TRUE(IsThere(pid));
  auto second = DaemonProcess::Adopt(std::move(pidfd));
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ((*second)->pid(), pid);
  EXPECT_FALSE((*second)->WaitForEnd(0));
  second->reset();
  EXPECT_FALSE(IsThere(pid));
}

TEST(DaemonProcessTest, AnEndedProcessIsAdoptedAsSuchAndNobodyElseIsKilled) {
  std::unique_ptr<DaemonProcess> process = Sleeper();
  UniqueFd pidfd = PidfdOf(process->pid());
  process.reset();
  auto adopted = DaemonProcess::Adopt(std::move(pidfd));
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_EQ((*adopted)->pid(), -1);
  EXPECT_TRUE((*adopted)->WaitForEnd(0));
  EXPECT_EQ((*adopted)->End(), "ended");
}

TEST(DaemonProcessTest, OnlyAPidfdIsAdopted) {
  for (const char* path : {"/dev/null", "/proc/self/status"})
    EXPECT_EQ(DaemonProcess::Adopt(UniqueFd(open(path, O_RDONLY | O_CLOEXEC))).status().code(),
              absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(DaemonProcess::Adopt(UniqueFd()).ok());
}

TEST(DaemonProcessTest, TellsAProgramAndItsArgumentsFromOthers) {
  char name[] = "/tmp/kapsule-daemon-process-XXXXXX";
  ASSERT_NE(mkdtemp(name), nullptr);
  const std::filesystem::path folder = name, program = folder / "sleep";
  std::filesystem::copy_file("/bin/sleep", program);
  std::unique_ptr<DaemonProcess> process = DaemonProcess::Start(program, {"1000"}, {}).value();
  for (int i = 0; i < 3000 && !process->Runs(program, {"1000"}); ++i)  // it may not have begun
    absl::SleepFor(absl::Milliseconds(10));
  EXPECT_TRUE(process->Runs(program, {"1000"}));
  EXPECT_FALSE(process->Runs(program, {"1001"}));
  EXPECT_FALSE(process->Runs(program, {"1000", ""}));
  std::filesystem::copy_file("/bin/sleep", folder / "new");
  std::filesystem::rename(folder / "new", program);
  EXPECT_FALSE(process->Runs(program, {"1000"}));
  std::filesystem::remove(program);
  EXPECT_FALSE(process->Runs(program, {"1000"}));
  process.reset();
  EXPECT_TRUE(RemoveTree(folder).ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
