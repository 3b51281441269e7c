#include "core/registry/program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/file.h"

namespace kapsule::registry {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t kMaxInputBytes = 4096;
constexpr milliseconds kPoll{100};

struct Pipe {
  UniqueFd read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "make a pipe");
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

std::vector<std::string> Environment(const Program& program) {
  std::vector<std::string> texts;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const bool replaced =
        std::any_of(program.environment.begin(), program.environment.end(),
                    [&](const auto& variable) { return text.starts_with(variable.first + "="); });
    if (!replaced) texts.push_back(text);
  }
  for (const auto& [name, value] : program.environment) texts.push_back(name + "=" + value);
  return texts;
}

// Attributes that give the program what a shell would: no blocked signals, and
// SIGPIPE ends it.
class Attributes {
 public:
  Attributes() {
    posix_spawnattr_init(&attributes_);
    sigset_t none, pipe;
    sigemptyset(&none);
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &pipe);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~Attributes() { posix_spawnattr_destroy(&attributes_); }
  const posix_spawnattr_t* get() const { return &attributes_; }

 private:
  posix_spawnattr_t attributes_;
};

// A running program; ended and reaped at the latest with the object.
class Child {
 public:
  static absl::StatusOr<Child> Start(const Program& program, int in, int out) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    std::vector<std::string> arguments = program.arguments, environment = Environment(program);
    arguments.insert(arguments.begin(), program.file);
    const Attributes attributes;
    pid_t pid = -1;
    const int error = posix_spawnp(&pid, program.file.c_str(), &actions, attributes.get(),
                                   Pointers(arguments).data(), Pointers(environment).data());
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) return FailedPrecondition("cannot be started: {}", strerror(error));
    return Child(pid);
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  ~Child() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    Reap();
  }

  // Readable once the program has ended.
  absl::StatusOr<UniqueFd> EndFd() const {
    const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
    if (fd < 0) return ErrnoStatus(errno, "pidfd_open");
    return UniqueFd(fd);
  }

  // The wait status.
  int Reap() {
    int status = -1;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status;
  }

 private:
  explicit Child(pid_t pid) : pid_(pid) {}
  pid_t pid_;
};

// Until `fd` can be read.
absl::Status WaitFor(int fd, Clock::time_point deadline, const std::function<bool()>& stopped) {
  for (;;) {
    if (stopped && stopped()) return Cancelled("stopped");
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) return DeadlineExceeded("no answer in time");
    pollfd waiting = {fd, POLLIN, 0};
    const int ready = poll(&waiting, 1, static_cast<int>(std::min(left, kPoll).count()));
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
  }
}

// All that comes until the other side closes.
absl::StatusOr<std::string> ReadAll(int fd, const Program& program, Clock::time_point deadline) {
  std::string text;
  char piece[4096];
  for (;;) {
    RETURN_IF_ERROR(WaitFor(fd, deadline, program.stopped));
    const ssize_t n = read(fd, piece, sizeof piece);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read");
    if (n == 0) return text;
    text.append(piece, static_cast<size_t>(n));
    if (text.size() > program.max_output)
      return InvalidArgument("an answer of more than {} bytes", program.max_output);
  }
}

}  // namespace

absl::StatusOr<ProgramOutput> RunProgram(const Program& program, const std::string& input) {
  if (input.size() > kMaxInputBytes)
    return InvalidArgument("a question of more than {} bytes", kMaxInputBytes);
  const Clock::time_point deadline = Clock::now() + program.timeout;
  ASSIGN_OR_RETURN(Pipe in, MakePipe());
  ASSIGN_OR_RETURN(Pipe out, MakePipe());
  // Written before the program runs: one that reads nothing raises no SIGPIPE.
  RETURN_IF_ERROR(WriteAll(in.write.get(), AsBytes(input)));
  in.write.reset();
  ASSIGN_OR_RETURN(Child child, Child::Start(program, in.read.get(), out.write.get()));
  out.write.reset();
  ProgramOutput output;
  ASSIGN_OR_RETURN(output.text, ReadAll(out.read.get(), program, deadline));
  // It may close its output and stay.
  ASSIGN_OR_RETURN(const UniqueFd end, child.EndFd());
  RETURN_IF_ERROR(WaitFor(end.get(), deadline, program.stopped));
  const int status = child.Reap();
  output.succeeded = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  return output;
}

}  // namespace kapsule::registry
