#include "snapshotter/daemon_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <fstream>
#include <optional>

#include "core/base/proc_file.h"

namespace kapsule::snapshotter {
namespace {

// posix_spawn(3) does between fork and exec what a threaded program may not.
class SpawnPlan {
 public:
  // `fds` are none of those that the child gets them as.
  explicit SpawnPlan(const std::vector<UniqueFd>& fds) {
    posix_spawn_file_actions_init(&actions_);
    int next = DaemonProcess::kFirstFd;
    for (const UniqueFd& fd : fds) posix_spawn_file_actions_adddup2(&actions_, fd.get(), next++);
    posix_spawn_file_actions_addclosefrom_np(&actions_, next);
    posix_spawnattr_init(&attributes_);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setflags(&attributes_,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
  ~SpawnPlan() {
    posix_spawnattr_destroy(&attributes_);
    posix_spawn_file_actions_destroy(&actions_);
  }
  absl::StatusOr<pid_t> Run(const std::string& program, std::vector<std::string>& arguments) {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    // kapsule-fuse would start itself again with it (bind_symbols.h).
    std::string bind_now = "LD_BIND_NOW=1";
    std::vector<char*> environment = {bind_now.data()};
    for (char** variable = environ; *variable != nullptr; ++variable)
      environment.push_back(*variable);
    environment.push_back(nullptr);
    pid_t pid = -1;
    const int error = posix_spawn(&pid, program.c_str(), &actions_, &attributes_, argv.data(),
                                  environment.data());
    if (error != 0) return ErrnoStatus(error, "start " + program);
    return pid;
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

// So high that none is overwritten before it has been copied.
absl::StatusOr<std::vector<UniqueFd>> OutOfTheWay(const std::vector<int>& fds) {
  const int first_free = DaemonProcess::kFirstFd + static_cast<int>(fds.size());
  std::vector<UniqueFd> high;
  for (const int fd : fds) {
    high.emplace_back(fcntl(fd, F_DUPFD_CLOEXEC, first_free));
    if (!high.back().valid()) return ErrnoStatus(errno, "duplicate a descriptor");
  }
  return high;
}

// -1: the process has been reaped. nullopt: not a pidfd.
std::optional<pid_t> PidOf(int pidfd) {
  std::ifstream info(fmt::format("/proc/self/fdinfo/{}", pidfd));
  for (std::string word; info >> word;) {
    pid_t pid = -1;
    if (word == "Pid:" && info >> pid) return pid;
  }
  return std::nullopt;
}

// Not pidfd_open(3): the header of glibc 2.36 does not compile for C++.
UniqueFd OpenPidfd(pid_t pid) {
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

constexpr size_t kMaxNameBytes = 15;  // of what the kernel calls a process

}  // namespace

absl::StatusOr<std::unique_ptr<DaemonProcess>> DaemonProcess::Start(
    const std::filesystem::path& program, std::vector<std::string> arguments,
    const std::vector<int>& fds) {
  ASSIGN_OR_RETURN(const std::vector<UniqueFd> high, OutOfTheWay(fds));
  arguments.insert(arguments.begin(), program.string());
  ASSIGN_OR_RETURN(const pid_t pid, SpawnPlan(high).Run(program.string(), arguments));
  UniqueFd pidfd = OpenPidfd(pid);
  const int error = errno;
  if (pidfd.valid())
    return std::unique_ptr<DaemonProcess>(new DaemonProcess(pid, std::move(pidfd)));
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  return ErrnoStatus(error, "watch " + program.string());
}

absl::StatusOr<std::unique_ptr<DaemonProcess>> DaemonProcess::Adopt(UniqueFd pidfd) {
  const std::optional<pid_t> pid = PidOf(pidfd.get());
  if (!pid) return InvalidArgument("not a descriptor of a process");
  return std::unique_ptr<DaemonProcess>(new DaemonProcess(*pid, std::move(pidfd)));
}

absl::StatusOr<std::unique_ptr<DaemonProcess>> DaemonProcess::Find(pid_t pid,
                                                                   std::string_view program) {
  UniqueFd pidfd = OpenPidfd(pid);
  if (!pidfd.valid()) return NotFound("there is no process {}", pid);
  std::ifstream in(fmt::format("/proc/{}/comm", pid));
  std::string name;
  std::getline(in, name);
  if (name != program.substr(0, kMaxNameBytes))
    return NotFound("process {} is not {}", pid, program);
  ASSIGN_OR_RETURN(std::unique_ptr<DaemonProcess> process, Adopt(std::move(pidfd)));
  // The name was that of the process which the descriptor is of.
  if (!process->WaitForEnd(0)) return process;
  process->Leave();
  return NotFound("process {} has ended", pid);
}

DaemonProcess::~DaemonProcess() { End(); }

bool DaemonProcess::WaitForEnd(int milliseconds) const {
  pollfd ended{pidfd_.get(), POLLIN, 0};
  int n;
  do {
    n = poll(&ended, 1, milliseconds);
  } while (n < 0 && errno == EINTR);
  return n > 0;
}

std::string DaemonProcess::End() {
  if (ended_) return "ended before";
  ended_ = true;
  syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  WaitForEnd(-1);
  siginfo_t info{};
  if (waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED) != 0) return "ended";
  return fmt::format("{} {}", info.si_code == CLD_EXITED ? "exit status" : "signal",
                     info.si_status);
}

bool DaemonProcess::Runs(const std::filesystem::path& program,
                         const std::vector<std::string>& arguments) const {
  struct stat running, on_disk;
  if (stat(fmt::format("/proc/{}/exe", pid_).c_str(), &running) != 0 ||
      stat(program.c_str(), &on_disk) != 0 || running.st_dev != on_disk.st_dev ||
      running.st_ino != on_disk.st_ino)
    return false;
  std::string expected = program.string() + '\0';
  for (const std::string& argument : arguments) expected += argument + '\0';
  return ReadProcFile(fmt::format("/proc/{}/cmdline", pid_)) == expected;
}

}  // namespace kapsule::snapshotter
