// What the data plane does when bytes, processes and peers are bad.
#include <absl/time/clock.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <fstream>

#include "core/base/unix_socket.h"
#include "core/control/control_wire.h"
#include "snapshotter/data_plane.h"
#include "snapshotter/data_plane_test_node.h"
#include "snapshotter/fuse_connection.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using blob::MakeTestFile;
using blob::SampleFiles;
using blob::TestBytes;
using testing::CompareTree;
using testing::StoredLayer;

using testing::Eventually;
using testing::IsAlive;
using testing::SendSignal;

using FailureTest = testing::DataPlaneTest;

// The signal that ends a child which touches every page of the file.
int SignalOfMapping(const fs::path& path, size_t size) {
  const pid_t child = fork();
  if (child == 0) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const volatile char* pages =
        static_cast<char*>(mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0));
    if (pages == MAP_FAILED) _exit(2);
    signal(SIGBUS, SIG_DFL);  // sanitizers handle it
    for (size_t at = 0; at < size; at += 4096) (void)pages[at];
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

TEST_F(FailureTest, ATamperedChunkIsAnErrorAndNeverWrongBytes) {
  const std::string content = TestBytes(4 << 20, 5);
  const StoredLayer layer = Store({MakeTestFile("weights", content)}, key_);
  const uint64_t start = layer.layer.toc.entries.back().offset;
  const uint64_t bad = AlignDown(start + (2 << 20), 64 * 1024);  // begins a chunk
  {
    const auto fd = OpenFile(layer.path, O_RDWR);
    ASSERT_TRUE(fd.ok());
    const char flipped = static_cast<char>(layer.layer.bytes[bad + 1000] ^ 1);
    ASSERT_EQ(pwrite(fd->get(), &flipped, 1, static_cast<off_t>(bad + 1000)), 1);
  }
  StartPlane();
  const auto view = Open(layer);
  ASSERT_TRUE(view.ok()) << view.status();
  const auto mounted = Mount(*view);
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  const fs::path path = (*mounted)->path() / "weights";
  const auto fd = OpenFile(path, O_RDONLY);
  ASSERT_TRUE(fd.ok());
  posix_fadvise(fd->get(), 0, 0, POSIX_FADV_RANDOM);
  bool failed = false;
  std::string piece(4096, '\0');
  for (uint64_t at = 0; at < content.size(); at += piece.size()) {
    const ssize_t n = pread(fd->get(), piece.data(), piece.size(), static_cast<off_t>(at));
    const bool in_bad_chunk = start + at >= bad && start + at < bad + 64 * 1024;
    if (in_bad_chunk) {
      EXPECT_EQ(n, -1) << at;
      EXPECT_EQ(errno, EIO);
      failed = true;
    } else if (n >= 0) {
      ASSERT_EQ(std::string_view(piece), std::string_view(content).substr(at, piece.size())) << at;
    }
  }
  EXPECT_TRUE(failed);
  EXPECT_EQ(SignalOfMapping(path, content.size()), SIGBUS);
  // Beside it, all is well.
  ASSERT_EQ(pread(fd->get(), piece.data(), piece.size(), 0), 4096);
  EXPECT_EQ(piece, content.substr(0, 4096));
}

TEST_F(FailureTest, ATamperedIndexOrTocIsDataLoss) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  StartPlane();
  for (const uint64_t at : {layer.layer.header.tar_length, layer.layer.ref.offset + 40}) {
    std::string bytes = layer.layer.bytes;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
    ASSERT_TRUE(WriteFileAtomic(layer.path, AsBytes(bytes), 0600).ok());
    EXPECT_EQ(Open(layer).status().code(), absl::StatusCode::kDataLoss) << at;
  }
}

TEST_F(FailureTest, CallsThatAreUnderWayFailWhenTheProcessDies) {
  StartPlane();
  const StoredLayer layer = Store(SampleFiles(), key_);
  keys_->SetDelay(absl::Seconds(30));
  absl::Status status;
  std::thread caller([&] { status = Open(layer).status(); });
  ASSERT_TRUE(Eventually([&] { return keys_->requests() > 0; }));
  ASSERT_NO_FATAL_FAILURE(SendSignal(plane_->pid(), SIGKILL));
  caller.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  keys_->SetDelay(absl::ZeroDuration());
  ASSERT_TRUE(Eventually([&] { return plane_->serving(); }));
  EXPECT_TRUE(Open(layer).ok());
}

TEST_F(FailureTest, AProcessThatHangsIsKilledAtTheEnd) {
  StartPlane();
  const pid_t pid = plane_->pid();
  ASSERT_NO_FATAL_FAILURE(SendSignal(pid, SIGSTOP));
  const absl::Time begin = absl::Now();
  plane_.reset();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
  EXPECT_FALSE(IsAlive(pid));
}

TEST_F(FailureTest, AStaleMountIsDetachedAtTheStart) {
  const fs::path views = folder_ / "views";
  ASSERT_TRUE(MakeDirs(views, 0700).ok());
  for (int i = 0; i < 2; ++i) {
    const auto device = OpenFile("/dev/fuse", O_RDWR);
    ASSERT_TRUE(device.ok());
    ASSERT_EQ(
        mount("x", views.c_str(), "fuse.kapsule", 0,
              fmt::format("fd={},rootmode=40000,user_id=0,group_id=0", device->get()).c_str()),
        0);
  }  // and nobody serves them
  struct stat st;
  EXPECT_EQ(stat(views.c_str(), &st), -1);
  StartPlane();
  EXPECT_EQ(stat(views.c_str(), &st), 0);
  plane_.reset();
  EXPECT_TRUE(fs::is_empty(views));
}

TEST_F(FailureTest, AProgramThatIsMissingOrFailsIsAnErrorAndLeavesNothing) {
  DataPlane::Options options = Options();
  options.program = folder_ / "missing";
  EXPECT_EQ(DataPlane::Start(options).status().code(), absl::StatusCode::kNotFound);
  options.program = "/bin/false";
  EXPECT_EQ(DataPlane::Start(options).status().code(), absl::StatusCode::kUnavailable);
  options = Options();
  options.uid = 0;  // kapsule-fuse refuses that
  EXPECT_EQ(DataPlane::Start(options).status().code(), absl::StatusCode::kUnavailable);
  options = Options();
  options.views = "relative";
  EXPECT_EQ(DataPlane::Start(options).status().code(), absl::StatusCode::kInvalidArgument);
}

// kapsule-fuse with a control socket in the test's hand.
class ProcessTest : public testing::DataPlaneTest {
 protected:
  void SetUp() override {
    DataPlaneTest::SetUp();
    const DataPlane::Options options = Options();
    ASSERT_TRUE(MakeDirs(options.views, 0700).ok());
    auto connection = FuseConnection::Make({.views = options.views,
                                            .holder_program = options.holder_program,
                                            .holder_socket = options.holder_socket,
                                            .uid = testing::kTestUid,
                                            .gid = testing::kTestGid});
    ASSERT_TRUE(connection.ok()) << connection.status();
    connection_ = *std::move(connection);
    const UniqueFd holder = connection_->ConnectToHolder().value();
    control::SocketPair pair = control::MakeSocketPair().value();
    auto process = DaemonProcess::Start(
        testing::FuseProgram(),
        {"--control-fd", "3", "--holder-fd", "4", "--uid", std::to_string(testing::kTestUid),
         "--gid", std::to_string(testing::kTestGid), "--keyprovider",
         (folder_ / "keys.sock").string()},
        {pair.theirs.get(), holder.get()});
    ASSERT_TRUE(process.ok()) << process.status();
    process_ = std::move(*process);
    control_ = std::move(pair.ours);
  }
  void TearDown() override {
    process_.reset();
    control_.reset();
    connection_.reset();
    DataPlaneTest::TearDown();
  }
  std::string HowItEnds() {
    if (!process_->WaitForEnd(10'000)) return "it runs on";
    return process_->End();
  }
  absl::Status Ask(v1::DataPlaneRequest request, const std::vector<int>& fds) {
    std::string bytes = request.SerializeAsString();
    RETURN_IF_ERROR(SendPacket(control_.get(), AsBytes(bytes), fds));
    ASSIGN_OR_RETURN(const v1::DataPlaneReply reply, control::ReceiveReply(control_.get()));
    EXPECT_EQ(reply.id(), request.id());
    return control::StatusOf(reply);
  }
  std::unique_ptr<FuseConnection> connection_;
  std::unique_ptr<DaemonProcess> process_;
  UniqueFd control_;
};

TEST_F(ProcessTest, BeforeItServesItEndsWhenTheControlSocketCloses) {
  control_.reset();
  EXPECT_EQ(HowItEnds(), "exit status 0");
}

TEST_F(ProcessTest, OnceItServesItEndsWithItsMount) {
  v1::DataPlaneRequest request;
  request.set_id(1);
  request.mutable_serve();
  ASSERT_EQ(Ask(request, {}), absl::OkStatus());
  control_.reset();
  EXPECT_FALSE(process_->WaitForEnd(300));
  connection_.reset();
  EXPECT_EQ(HowItEnds(), "exit status 1");
}

TEST_F(ProcessTest, ItEndsAtSigterm) {
  v1::DataPlaneRequest request;  // once it answers, it listens to signals
  request.set_id(1);
  request.mutable_close()->set_digest(std::string(64, 'a'));
  ASSERT_EQ(Ask(request, {}).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_NO_FATAL_FAILURE(SendSignal(process_->pid(), SIGTERM));
  EXPECT_EQ(HowItEnds(), "exit status 0");
}

TEST_F(ProcessTest, GarbageEndsItWithAnErrorAndNoCrash) {
  ASSERT_TRUE(SendPacket(control_.get(), AsBytes(TestBytes(5000, 9))).ok());
  EXPECT_EQ(HowItEnds(), "exit status 1");
}

TEST_F(ProcessTest, ABadRequestIsAnsweredAndTheNextOneToo) {
  const UniqueFd null = OpenFile("/dev/null", O_RDWR).value();
  v1::DataPlaneRequest request;
  request.set_id(5);
  EXPECT_EQ(Ask(request, {}).code(), absl::StatusCode::kInvalidArgument);
  request.mutable_close()->set_digest("../../etc/passwd");
  EXPECT_EQ(Ask(request, {}).code(), absl::StatusCode::kInvalidArgument);
  request.mutable_serve();
  EXPECT_EQ(Ask(request, {null.get()}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Ask(request, {}), absl::OkStatus());
  EXPECT_EQ(Ask(request, {}).code(), absl::StatusCode::kAlreadyExists);  // once is enough
  request.mutable_open()->set_digest(std::string(64, 'b'));
  request.mutable_open()->set_size(10);
  request.mutable_open()->set_timeout_ms(1000);
  // Not a sealed memfd.
  EXPECT_EQ(Ask(request, {null.get(), null.get()}).code(), absl::StatusCode::kInvalidArgument);
  request.mutable_close()->set_digest(std::string(64, 'b'));
  EXPECT_TRUE(Ask(request, {}).ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
