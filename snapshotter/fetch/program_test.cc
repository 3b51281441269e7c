// kapsule-fetch itself, as kapsule-snapshotter starts it, with a real registry.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/blob/layer_reader.h"
#include "core/control/control_wire.h"
#include "core/control/fetch_control.h"
#include "core/registry/repository.h"
#include "snapshotter/fetch/test_fetch.h"

namespace kapsule::fetch {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;

int FreePort() {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  return ntohs(address.sin_port);
}

std::string StatusOfProcess(pid_t pid) {
  const UniqueFd file = OpenFile(fmt::format("/proc/{}/status", pid), O_RDONLY).value();
  std::string text(8192, '\0');
  text.resize(static_cast<size_t>(std::max<ssize_t>(0, read(file.get(), text.data(), 8192))));
  return text;
}

// A program that ends with the object.
class Process {
 public:
  // `control`, where it is there, becomes descriptor 3.
  Process(std::vector<std::string> command, const fs::path& log, int control = -1) {
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
    for (int i = 0; i < 100 && !upload.ok(); ++i) {  // until the registry listens
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
        fs::read_symlink("/proc/self/exe").parent_path() / "kapsule-fetch",
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

  fs::path folder_;
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

TEST_F(FetchProgramTest, ALayerIsReadFromItsRegistryAsAUserWithoutRights) {
  StartFetch();
  Connect();
  absl::StatusOr<UniqueFd> file = Open(image_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_NE(fcntl(file->get(), F_GETFL) & O_DIRECT, 0);
  EXPECT_EQ(fcntl(file->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  ASSERT_TRUE(fuse_->Get(name_.digest, {0, blocks_}));
  EXPECT_EQ(Read(*std::move(file), 0, layer_.header.covered_length),
            layer_.plain.substr(0, layer_.header.covered_length));
  const v1::FetchStats stats = Stats();
  EXPECT_EQ(stats.blocks_fetched(), blocks_);
  EXPECT_EQ(stats.open_blobs(), 1u);
  EXPECT_LT(stats.bytes_fetched(), layer_.bytes.size() + 2 * kMiB);
  const std::string status = StatusOfProcess(fetch_->pid());
  for (const char* line :
       {"Uid:\t65533\t65533\t65533\t65533", "Groups:\t \n", "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"})
    EXPECT_THAT(status, HasSubstr(line));
  EXPECT_EQ(fetch_->End(SIGTERM), 0);
}

TEST_F(FetchProgramTest, KilledInTheMiddleItGoesOnWithWhatWasStored) {
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  ASSERT_TRUE(fuse_->Get(name_.digest, {0, 6}));
  EXPECT_EQ(fetch_->End(SIGTERM), 0);  // stores
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->HasAll(name_.digest, {0, 6}); }));
  fuse_->Want(name_.digest, {6, blocks_ - 6});
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->HasAll(name_.digest, {6, 2}); }));
  fetch_->End(SIGKILL);  // stores nothing
  StartFetch();
  Connect();
  fuse_->Want(name_.digest, {0, blocks_});  // before the snapshotter opens it
  absl::StatusOr<UniqueFd> file = Open(image_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->HasAll(name_.digest, {0, blocks_}); }));
  EXPECT_LE(Stats().blocks_fetched(), blocks_ - 6);
  EXPECT_EQ(Read(*std::move(file), 0, layer_.header.covered_length),
            layer_.plain.substr(0, layer_.header.covered_length));
}

TEST_F(FetchProgramTest, ADamagedBlockIsMendedWhenItIsSuspected) {
  StartFetch();
  Connect();
  absl::StatusOr<UniqueFd> file = Open(image_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(fuse_->Get(name_.digest, {3, 1}));
  const UniqueFd damaged = OpenFile(folder_ / "cache" / name_.digest.hex(), O_WRONLY).value();
  ASSERT_EQ(pwrite(damaged.get(), "damage", 6, 3 * kMiB + 99), 6);
  ASSERT_EQ(fsync(damaged.get()), 0);
  fuse_->Send(name_.digest, control::FetchSuspect{3});
  ASSERT_TRUE(fuse_->Until([&] { return fuse_->checked == std::vector<uint64_t>{3}; }));
  EXPECT_EQ(Stats().mended(), 1u);
  EXPECT_EQ(Read(*std::move(file), 3 * kMiB, kMiB), layer_.plain.substr(3 * kMiB, kMiB));
}

TEST_F(FetchProgramTest, ReadsWaitWhileTheRegistryIsAway) {
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  registry_ = nullptr;
  fuse_->Want(name_.digest, {0, 4});
  while (Stats().retries() < 2) absl::SleepFor(absl::Milliseconds(20));
  EXPECT_TRUE(fuse_->have[name_.digest].empty() || !fuse_->HasAll(name_.digest, {0, 4}));
  StartRegistry();
  EXPECT_TRUE(fuse_->Until([&] { return fuse_->HasAll(name_.digest, {0, 4}); }, absl::Seconds(30)));
  EXPECT_TRUE(fuse_->failed.empty());
}

TEST_F(FetchProgramTest, ReadsFailInTimeWhileTheRegistryIsAway) {
  StartFetch({"--read-timeout-ms", "700"});
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  registry_ = nullptr;
  fuse_->Want(name_.digest, {0, 4});
  ASSERT_TRUE(fuse_->Until([&] { return !fuse_->failed.empty(); }));
  EXPECT_EQ(fuse_->failed.front().why.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(FetchProgramTest, ABlobThatTheRegistryHasNotIsNotFound) {
  StartFetch();
  const auto file = Open(fmt::format("127.0.0.1:{}/models/other:1", port_));
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound) << file.status();
  EXPECT_EQ(Open("no reference!").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FetchProgramTest, WithoutControlItLivesAsLongAsKapsuleFuse) {
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  control_.reset();
  ASSERT_TRUE(fuse_->Get(name_.digest, {0, 3}));
  EXPECT_TRUE(fetch_->Runs());
  fuse_ = nullptr;
  EXPECT_EQ(fetch_->Wait(), 0);

  StartFetch();
  v1::FetchRequest request;
  request.mutable_get_stats();
  Call(request);
  control_.reset();
  EXPECT_EQ(fetch_->Wait(), 0);
}

TEST_F(FetchProgramTest, ASecondOneWaitsForTheCache) {
  StartFetch();
  Connect();
  ASSERT_TRUE(Open(image_).ok());
  const std::unique_ptr<Process> first = std::move(fetch_);
  const UniqueFd first_control = std::move(control_);
  StartFetch({"--lock-wait-ms", "100"});
  EXPECT_EQ(fetch_->Wait(), 1);
  EXPECT_THAT(ReadFile(folder_ / "fetch.log", 1 << 20).value(), HasSubstr("end it first"));
  StartFetch();
  absl::SleepFor(absl::Milliseconds(100));
  EXPECT_EQ(first->End(SIGTERM), 0);
  ASSERT_TRUE(Open(image_).ok());
}

}  // namespace
}  // namespace kapsule::fetch
