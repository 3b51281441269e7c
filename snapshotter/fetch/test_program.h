// What the tests of the program share: kapsule-fetch as kapsule-snapshotter starts it,
// Debian's docker-registry with one layer, and kapsule-fuse's end of the data socket.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/blob/layer_reader.h"
#include "core/control/control_wire.h"
#include "core/control/fetch_control.h"
#include "core/registry/repository.h"
#include "snapshotter/fetch/test_fetch.h"

namespace kapsule::fetch {

inline constexpr uint64_t kMiB = 1 << 20;

inline int FreePort() {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  return ntohs(address.sin_port);
}

// A program that ends with the object.
class Process {
 public:
  // `control`, where it is there, becomes descriptor 3.
  Process(std::vector<std::string> command, const std::filesystem::path& log, int control = -1) {
    std::vector<char*> argv;
    for (std::string& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, log.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 2, 1);
    if (control >= 0) posix_spawn_file_actions_adddup2(&actions, control, 3);
    EXPECT_EQ(posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Process() { End(SIGKILL); }
  int End(int signal) {
    if (pid_ <= 0) return -1;
    kill(pid_, signal);
    return Wait();
  }
  int Wait() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  bool Runs() const { return pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == 0; }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

class FetchProgramTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(geteuid(), 0u) << "run this as root";
    char name[] = "/tmp/kapsule-fetch-program-XXXXXX";
    folder_ = mkdtemp(name);
    ASSERT_EQ(chmod(folder_.c_str(), 0711), 0);
    const std::string config = fmt::format(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}/data\nhttp:\n"
        "  addr: 127.0.0.1:{}\n",
        folder_.string(), port_);
    ASSERT_TRUE(WriteFileAtomic(folder_ / "config.yml", AsBytes(config), 0600).ok());
    StartRegistry();
    Push();
  }
  void TearDown() override {
    fetch_ = nullptr;
    registry_ = nullptr;
    if (HasFailure()) puts(ReadFile(folder_ / "fetch.log", 1 << 20).value_or("").c_str());
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  void StartRegistry() {
    registry_ = std::make_unique<Process>(
        std::vector<std::string>{"docker-registry", "serve", folder_ / "config.yml"},
        folder_ / "registry.log");
  }
  void Push() {
    registry::Options options;
    options.insecure = true;
    options.retry.attempts = 10;
    registry::Repository repository(oci::Reference::Parse(image_).value(), options);
    auto upload = repository.StartBlob(layer_.bytes.size());
    for (int i = 0; i < 600 && !upload.ok(); ++i) {  // until the registry listens
      absl::SleepFor(absl::Milliseconds(50));
      upload = repository.StartBlob(layer_.bytes.size());
    }
    ASSERT_TRUE(upload.ok()) << upload.status();
    ASSERT_TRUE((*upload)->Write(AsBytes(layer_.bytes)).ok());
    ASSERT_TRUE((*upload)->Commit(name_.digest, name_.size).ok());
  }

  void StartFetch(std::vector<std::string> more = {}) {
    control::SocketPair pair = control::MakeSocketPair().value();
    std::vector<std::string> command{
        std::filesystem::read_symlink("/proc/self/exe").parent_path() / "kapsule-fetch",
        "--control-fd",
        "3",
        "--uid",
        "65533",
        "--gid",
        "65533",
        "--cache",
        folder_ / "cache",
        "--fill",
        "off",
        "--hosts-dir",
        "",
        "--log-level",
        "debug"};
    command.insert(command.end(), more.begin(), more.end());
    fetch_ = std::make_unique<Process>(command, folder_ / "fetch.log", pair.theirs.get());
    control_ = std::move(pair.ours);
  }
  control::ReceivedFetchReply Call(v1::FetchRequest request, const std::vector<int>& fds = {}) {
    request.set_id(++last_id_);
    EXPECT_TRUE(control::SendFetchRequest(control_.get(), request, fds).ok());
    auto reply = control::ReceiveFetchReply(control_.get());
    EXPECT_TRUE(reply.ok()) << reply.status();
    if (!reply.ok()) return {};
    EXPECT_EQ(reply->message.id(), last_id_);
    return *std::move(reply);
  }
  void Connect() {
    control::SocketPair data = control::MakeSocketPair().value();
    v1::FetchRequest request;
    request.mutable_connect();
    EXPECT_TRUE(control::StatusOf(Call(request, {data.theirs.get()}).message).ok());
    fuse_ = std::make_unique<FakeFuse>(std::move(data.ours));
  }
  absl::StatusOr<UniqueFd> Open(const std::string& image, uint32_t timeout_ms = 20'000) {
    v1::FetchRequest request;
    v1::FetchOpen& open = *request.mutable_open();
    open.set_digest(name_.digest.hex());
    open.set_size(name_.size);
    open.mutable_index()->set_version(name_.index.version);
    open.mutable_index()->set_header_offset(name_.index.offset);
    open.mutable_index()->set_header_length(name_.index.length);
    open.mutable_index()->set_root(name_.index.root.hex());
    open.add_sources(image);
    open.set_timeout_ms(timeout_ms);
    control::ReceivedFetchReply reply = Call(request);
    RETURN_IF_ERROR(control::StatusOf(reply.message));
    if (reply.fds.size() != 1) return Internal("no descriptor");
    return std::move(reply.fds[0]);
  }
  v1::FetchStats Stats() {
    v1::FetchRequest request;
    request.mutable_get_stats();
    return Call(request).message.stats();
  }
  // The layer's plaintext, from what is there of the file.
  std::string Read(UniqueFd file, uint64_t offset, size_t size) {
    auto blob = blob::DirectFileReader::Adopt(std::move(file)).value();
    const auto reader =
        blob::LayerReader::Open(std::move(blob), layer_.ref, layer_.key.Clone()).value();
    std::string plain(size, '\0');
    const absl::Status status = reader->Read(offset, std::as_writable_bytes(std::span(plain)));
    EXPECT_TRUE(status.ok()) << status;
    return plain;
  }

  std::filesystem::path folder_;
  const int port_ = FreePort();
  const std::string image_ = fmt::format("127.0.0.1:{}/models/tiny:1", port_);
  const blob::TestLayer layer_ = LayerOf(24 * kMiB);
  const BlobName name_ = NameOf(layer_);
  const uint64_t blocks_ = CeilDiv(layer_.header.covered_length, kMiB);
  std::unique_ptr<Process> registry_, fetch_;
  UniqueFd control_;
  std::unique_ptr<FakeFuse> fuse_;
  uint64_t last_id_ = 0;
};

}  // namespace kapsule::fetch
