#include "core/registry/test_registry.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "core/base/file.h"

namespace kapsule::registry {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kListening = "listening on 127.0.0.1:";
// bcrypt of kPassword.
constexpr std::string_view kHtpasswd =
    "publisher:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

// The port that the registry says it listens on.
absl::StatusOr<int> ReadPort(const fs::path& log) {
  for (int i = 0; i < 600; ++i) {
    const absl::StatusOr<std::string> text = ReadFile(log, 1 << 20);
    const size_t at = text.ok() ? text->find(kListening) : std::string::npos;
    if (at != std::string::npos && text->find('"', at) != std::string::npos)
      return atoi(text->c_str() + at + kListening.size());
    usleep(50'000);
  }
  return DeadlineExceeded("docker-registry does not listen; see its log: {}",
                          ReadFile(log, 1 << 20).value_or("none"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TestRegistry>> TestRegistry::Start(Access access,
                                                                  const std::string& http) {
  std::unique_ptr<TestRegistry> registry(new TestRegistry);
  char name[] = "/tmp/kapsule-registry-XXXXXX";
  if (mkdtemp(name) == nullptr) return ErrnoStatus(errno, name);
  registry->folder_ = name;
  RETURN_IF_ERROR(registry->WriteConfig(access, http));
  RETURN_IF_ERROR(registry->Spawn());
  ASSIGN_OR_RETURN(registry->port_, ReadPort(registry->folder_ / "log"));
  return registry;
}

TestRegistry::~TestRegistry() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (!folder_.empty()) (void)RemoveTree(folder_);
}

absl::Status TestRegistry::WriteConfig(Access access, const std::string& http) const {
  std::string config = fmt::format(
      "version: 0.1\n"
      "storage:\n"
      "  filesystem:\n"
      "    rootdirectory: {}/data\n"
      "  delete:\n"
      "    enabled: true\n"
      "http:\n"
      "  addr: 127.0.0.1:0\n"
      "{}",
      folder_.string(), http);
  if (access == Access::kPassword) {
    RETURN_IF_ERROR(WriteFileAtomic(folder_ / "htpasswd", AsBytes(kHtpasswd), 0600));
    config += fmt::format("auth:\n  htpasswd:\n    realm: test\n    path: {}/htpasswd\n",
                          folder_.string());
  }
  return WriteFileAtomic(folder_ / "config.yml", AsBytes(config), 0600);
}

absl::Status TestRegistry::Spawn() {
  const std::string config = folder_ / "config.yml", log = folder_ / "log";
  const char* arguments[] = {"docker-registry", "serve", config.c_str(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log.c_str(), O_CREAT | O_WRONLY, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  const int error =
      posix_spawnp(&pid_, arguments[0], &actions, nullptr, const_cast<char**>(arguments), environ);
  posix_spawn_file_actions_destroy(&actions);
  return error == 0 ? absl::OkStatus() : ErrnoStatus(error, "start docker-registry");
}

size_t TestRegistry::OpenUploads(const std::string& repository) const {
  const fs::path uploads =
      folder_ / "data/docker/registry/v2/repositories" / repository / "_uploads";
  std::error_code error;
  size_t count = 0;
  // The registry leaves an empty folder tree behind a deleted upload.
  for (const auto& entry : fs::directory_iterator(uploads, error))
    count += fs::exists(entry.path() / "startedat", error);
  return count;
}

}  // namespace kapsule::registry
