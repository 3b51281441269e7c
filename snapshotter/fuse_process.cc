#include "snapshotter/fuse_process.h"

#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

namespace kapsule::snapshotter {
namespace {

// posix_spawn(3) does between fork and exec what a threaded program may not.
class SpawnPlan {
 public:
  explicit SpawnPlan(int control) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_adddup2(&actions_, control, FuseProcess::kControlFd);
    posix_spawn_file_actions_addclosefrom_np(&actions_, FuseProcess::kControlFd + 1);
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
    pid_t pid = -1;
    const int error =
        posix_spawn(&pid, program.c_str(), &actions_, &attributes_, argv.data(), environ);
    if (error != 0) return ErrnoStatus(error, "start " + program);
    return pid;
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<FuseProcess>> FuseProcess::Start(
    const std::filesystem::path& program, std::vector<std::string> arguments, int control) {
  arguments.insert(arguments.begin(), program.string());
  ASSIGN_OR_RETURN(const pid_t pid, SpawnPlan(control).Run(program.string(), arguments));
  // Not pidfd_open(3): the header of glibc 2.36 does not compile for C++.
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  const int error = errno;
  const bool watched = pidfd.valid();
  std::unique_ptr<FuseProcess> process(new FuseProcess(pid, std::move(pidfd)));
  if (!watched) return ErrnoStatus(error, "watch " + program.string());  // and ends it
  return process;
}

FuseProcess::~FuseProcess() { End(); }

bool FuseProcess::WaitForEnd(int milliseconds) const {
  pollfd ended{pidfd_.get(), POLLIN, 0};
  int n;
  do {
    n = poll(&ended, 1, milliseconds);
  } while (n < 0 && errno == EINTR);
  return n > 0;
}

std::string FuseProcess::End() {
  if (reaped_) return "reaped";
  kill(pid_, SIGKILL);  // does nothing to one that has ended: nobody has reaped it
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  reaped_ = true;
  if (WIFSIGNALED(status)) return fmt::format("signal {}", WTERMSIG(status));
  return fmt::format("exit status {}", WEXITSTATUS(status));
}

}  // namespace kapsule::snapshotter
