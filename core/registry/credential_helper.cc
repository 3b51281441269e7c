#include "core/registry/credential_helper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/file.h"
#include "core/base/json.h"

namespace kapsule::registry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxAnswerBytes = 64 * 1024;
constexpr size_t kMaxServerBytes = 1024;  // fits a pipe without a reader
constexpr char kIdentityUser[] = "<token>";

struct Pipe {
  UniqueFd read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "make a pipe");
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// A running helper; ended and reaped at the latest with the object.
class Child {
 public:
  static absl::StatusOr<Child> Start(const std::string& program, int in, int out) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    std::string name = program, verb = "get";
    char* arguments[] = {name.data(), verb.data(), nullptr};
    pid_t pid = -1;
    const int error = posix_spawnp(&pid, name.c_str(), &actions, nullptr, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) return FailedPrecondition("cannot be started: {}", strerror(error));
    return Child(pid);
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  ~Child() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    Wait();
  }

  // The wait status.
  int Wait() {
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

// All that comes until the other side closes.
absl::StatusOr<std::string> ReadAnswer(int fd, Clock::time_point deadline) {
  std::string answer;
  char piece[4096];
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd waiting = {fd, POLLIN, 0};
    const int ready = left <= 0 ? 0 : poll(&waiting, 1, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return ErrnoStatus(errno, "poll");
    if (ready == 0) return DeadlineExceeded("no answer in time");
    const ssize_t n = read(fd, piece, sizeof piece);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read");
    if (n == 0) return answer;
    answer.append(piece, static_cast<size_t>(n));
    if (answer.size() > kMaxAnswerBytes)
      return InvalidArgument("an answer of more than {} bytes", kMaxAnswerBytes);
  }
}

absl::StatusOr<Credentials> ParseAnswer(const std::string& answer) {
  // The parser's own message could quote the answer.
  const absl::StatusOr<Json> json = ParseJson(answer, kMaxAnswerBytes);
  if (!json.ok()) return InvalidArgument("its answer is not JSON");
  ASSIGN_OR_RETURN(std::string username, StringMember(*json, "Username"));
  ASSIGN_OR_RETURN(std::string secret, StringMember(*json, "Secret"));
  if (username == kIdentityUser) return Credentials{"", "", std::move(secret)};
  return Credentials{std::move(username), std::move(secret), ""};
}

absl::StatusOr<Credentials> Ask(const std::string& program, const std::string& server,
                                std::chrono::milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  ASSIGN_OR_RETURN(Pipe in, MakePipe());
  ASSIGN_OR_RETURN(Pipe out, MakePipe());
  // Written before the helper runs: a helper that reads nothing raises no SIGPIPE.
  RETURN_IF_ERROR(WriteAll(in.write.get(), AsBytes(server)));
  in.write.reset();
  ASSIGN_OR_RETURN(Child child, Child::Start(program, in.read.get(), out.write.get()));
  out.write.reset();
  ASSIGN_OR_RETURN(const std::string answer, ReadAnswer(out.read.get(), deadline));
  const int status = child.Wait();
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return ParseAnswer(answer);
  if (answer.starts_with("credentials not found")) return NotFound("it has no credentials");
  return FailedPrecondition("it failed");
}

}  // namespace

absl::StatusOr<Credentials> AskCredentialHelper(const std::string& helper,
                                                const std::string& server,
                                                std::chrono::milliseconds timeout) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  if (helper.empty() || helper.size() > 64 || !std::all_of(helper.begin(), helper.end(), allowed))
    return InvalidArgument("the configured credential helper is no program name");
  if (server.size() > kMaxServerBytes) return InvalidArgument("server name too long");
  const std::string program = "docker-credential-" + helper;
  absl::StatusOr<Credentials> credentials = Ask(program, server, timeout);
  if (!credentials.ok()) return Annotate(credentials.status(), program);
  return credentials;
}

}  // namespace kapsule::registry
