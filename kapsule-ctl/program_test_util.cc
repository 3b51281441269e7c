#include "kapsule-ctl/program_test_util.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "core/base/file.h"

namespace kapsule::ctl {
namespace fs = std::filesystem;

TempFolder::TempFolder() {
  std::string name = "/tmp/kapsule-ctl-test-XXXXXX";
  path_ = mkdtemp(name.data());
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

namespace {

fs::path NewFile(const fs::path& folder, const char* kind) {
  static int number = 0;
  return folder / fmt::format("{}-{}", kind, ++number);
}

int Redirect(const fs::path& path, int flags, int to) {
  const int fd = open(path.c_str(), flags, 0600);
  return fd >= 0 && dup2(fd, to) == to ? 0 : -1;
}

// "127.0.0.1:<port>" where the registry says so in its log, else empty.
std::string HostIn(const std::string& log) {
  constexpr std::string_view kListening = "listening on ";
  const size_t at = log.find(kListening);
  const size_t end = at == std::string::npos ? at : log.find('"', at);
  if (end == std::string::npos) return "";
  return log.substr(at + kListening.size(), end - at - kListening.size());
}

}  // namespace

Process::Process(const fs::path& folder, const std::vector<std::string>& command,
                 const std::string& input, const std::vector<std::string>& environment)
    : out_(NewFile(folder, "out")), err_(NewFile(folder, "err")) {
  const fs::path in = NewFile(folder, "in");
  WriteText(in, input);
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  pid_ = fork();
  if (pid_ != 0) return;
  for (const std::string& variable : environment) putenv(const_cast<char*>(variable.c_str()));
  constexpr int kNew = O_WRONLY | O_CREAT | O_TRUNC;
  if (Redirect(in, O_RDONLY, 0) != 0 || Redirect(out_, kNew, 1) != 0 ||
      Redirect(err_, kNew, 2) != 0)
    _exit(126);
  execvp(words[0], words.data());
  _exit(127);
}

Process::~Process() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  Wait();
}

bool Process::running() {
  if (pid_ <= 0) return false;
  siginfo_t info = {};
  return waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

void Process::Signal(int number) { kill(pid_, number); }

int Process::Wait() {
  if (pid_ <= 0) return code_;
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  code_ = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
  return code_;
}

std::string Process::out() const { return ReadText(out_); }
std::string Process::err() const { return ReadText(err_); }

Ran RunProgram(const TempFolder& folder, const std::vector<std::string>& command,
               const std::string& input, const std::vector<std::string>& environment) {
  Process process(folder.path(), command, input, environment);
  const int code = process.Wait();
  return {code, process.out(), process.err()};
}

Registry::Registry(const TempFolder& folder, const std::string& htpasswd) {
  std::string config = fmt::format(
      "version: 0.1\nlog: {{level: info}}\n"
      "storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:0}}\n",
      (folder / "registry").string());
  if (!htpasswd.empty()) config += "auth: {htpasswd: {realm: r, path: " + htpasswd + "}}\n";
  WriteText(folder / "registry.yml", config);
  process_ = std::make_unique<Process>(
      folder.path(),
      std::vector<std::string>{"docker-registry", "serve", (folder / "registry.yml").string()});
  for (int i = 0; i < 600 && process_->running() && host_.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    host_ = HostIn(process_->err());
  }
  EXPECT_NE(host_, "") << process_->err();
}

void WriteText(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string ReadText(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::vector<std::string> BlobsOf(const fs::path& layout) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(layout / "blobs/sha256", error))
    names.push_back(entry.path().filename().string());
  return names;
}

Json BlobJson(const fs::path& layout, const std::string& digest) {
  const auto json =
      ParseJson(ReadText(layout / "blobs/sha256" / digest.substr(digest.find(':') + 1)), 1 << 22);
  EXPECT_TRUE(json.ok()) << json.status();
  return json.value_or(Json::object());
}

Json ManifestOf(const fs::path& layout) {
  const auto index = ParseJson(ReadText(layout / "index.json"), 1 << 22);
  EXPECT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(index->at("manifests").size(), 1u);
  return BlobJson(layout, index->at("manifests")[0]["digest"].get<std::string>());
}

}  // namespace kapsule::ctl
