#include "snapshotter/fuse/test_node.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "core/base/unix_socket.h"
#include "core/keyprovider/wire.h"
#include "core/view/view.h"
#include "snapshotter/fuse/reply.h"

namespace kapsule::fuse::testing {
namespace fs = std::filesystem;

TestHolder::TestHolder(const fs::path& socket)
    : path_(socket),
      stop_(eventfd(0, EFD_CLOEXEC)),
      store_(std::make_unique<control::HolderStore>(30'000)),
      server_(control::HolderServer::Make(ListenUnix(socket, SOCK_SEQPACKET, 0600).value(),
                                          kTestUid, *store_)
                  .value()) {
  thread_ = std::thread([this] { EXPECT_TRUE(server_->Run(stop_.get()).ok()); });
}

void TestHolder::Stop() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  EXPECT_EQ(write(stop_.get(), &one, sizeof(one)), ssize_t(sizeof(one)));
  thread_.join();
  server_.reset();
  store_.reset();
}

UniqueFd TestHolder::Connect() const { return ConnectUnix(path_, SOCK_SEQPACKET).value(); }

TestKeys::TestKeys(const fs::path& socket, const blob::TestLayer& layer)
    : layer_(layer), listener_(ListenUnix(socket, SOCK_SEQPACKET, 0666).value()) {
  thread_ = std::thread([this] {
    while (!stopping_) {
      const UniqueFd connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!connection.valid() || stopping_) continue;
      ++requests_;
      if (!keyprovider::ReceiveRequest(connection.get()).ok()) continue;
      const auto unwrap = [this]() -> absl::StatusOr<keyprovider::UnwrappedLayer> {
        const absl::MutexLock lock(&mu_);
        RETURN_IF_ERROR(refusal_);
        return keyprovider::UnwrappedLayer{layer_.key.Clone(), layer_.ref};
      };
      static_cast<void>(keyprovider::SendReply(connection.get(), unwrap()));
    }
  });
}

void TestKeys::Refuse(absl::Status refusal) {
  const absl::MutexLock lock(&mu_);
  refusal_ = std::move(refusal);
}

TestKeys::~TestKeys() {
  stopping_ = true;
  shutdown(listener_.get(), SHUT_RDWR);
  thread_.join();
}

TestProcess::TestProcess(const fs::path& keyprovider, UniqueFd holder,
                         const std::vector<std::string>& flags, std::vector<std::string> wrapper)
    : log_(memfd_create("log", MFD_CLOEXEC)) {
  control::SocketPair pair = control::MakeSocketPair().value();
  control_ = std::move(pair.ours);
  std::vector<std::string> words = std::move(wrapper);
  words.push_back(fs::read_symlink("/proc/self/exe").parent_path() / "kapsule-fuse");
  const std::string uid = std::to_string(kTestUid), gid = std::to_string(kTestGid);
  for (const std::string& word :
       {std::string("--control-fd"), std::string("200"), std::string("--holder-fd"),
        std::string("201"), std::string("--uid"), uid, std::string("--gid"), gid,
        std::string("--keyprovider"), keyprovider.string()})
    words.push_back(word);
  words.insert(words.end(), flags.begin(), flags.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pair.theirs.get(), 200);
  posix_spawn_file_actions_adddup2(&actions, holder.get(), 201);
  posix_spawn_file_actions_adddup2(&actions, log_.get(), 2);
  EXPECT_EQ(posix_spawn(&pid_, words[0].c_str(), &actions, nullptr, argv.data(), environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  EXPECT_TRUE(SetTimeout(control_.get(), 20'000).ok());
}

TestProcess::~TestProcess() {
  Kill();
  if (::testing::Test::HasFailure()) std::cerr << Log();
}

void TestProcess::Kill() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  WaitForEnd();
}

int TestProcess::WaitForEnd() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool TestProcess::running() const {
  siginfo_t info{};
  return waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

std::string TestProcess::Log() const {
  std::string text(static_cast<size_t>(lseek(log_.get(), 0, SEEK_END)), '\0');
  EXPECT_EQ(pread(log_.get(), text.data(), text.size(), 0), ssize_t(text.size()));
  return text;
}

absl::StatusOr<v1::DataPlaneReply> TestProcess::Call(v1::DataPlaneRequest request,
                                                     const std::vector<int>& fds) {
  request.set_id(++last_id_);
  RETURN_IF_ERROR(control::SendRequest(control_.get(), request, fds));
  ASSIGN_OR_RETURN(v1::DataPlaneReply reply, control::ReceiveReply(control_.get()));
  EXPECT_EQ(reply.id(), request.id());
  RETURN_IF_ERROR(control::StatusOf(reply));
  return reply;
}

absl::Status TestProcess::Serve() {
  v1::DataPlaneRequest request;
  request.mutable_serve();
  return Call(std::move(request)).status();
}

TestNode::TestNode()
    : encrypted_(
          blob::BuildTestLayer({blob::MakeTestFile("weights", blob::TestBytes(6 << 20, 1))}, true)),
      plain_(
          blob::BuildTestLayer({blob::MakeTestFile("notes", blob::TestBytes(1 << 20, 2))}, false)) {
  EXPECT_EQ(geteuid(), 0u) << "this test needs root";
  std::string name = "/tmp/kapsule-fuse-XXXXXX";
  EXPECT_NE(mkdtemp(name.data()), nullptr);
  folder_ = name;
  EXPECT_EQ(chmod(name.c_str(), 0711), 0);  // the keyprovider's socket is in it
  EXPECT_TRUE(MakeDirs(folder_ / "views", 0700).ok());
  for (const bool encrypted : {false, true})
    EXPECT_TRUE(WriteFileAtomic(BlobPath(encrypted), AsBytes(LayerOf(encrypted).bytes), 0600).ok());
  holder_ = std::make_unique<TestHolder>(folder_ / "holder.sock");
  StartKeys();
  const UniqueFd device = OpenFile("/dev/fuse", O_RDWR).value();
  const std::string options =
      fmt::format("fd={},rootmode=40000,user_id=0,group_id=0,max_read={}", device.get(), kMaxRead);
  EXPECT_EQ(mount("kapsule", (folder_ / "views").c_str(), "fuse.kapsule",
                  MS_NOSUID | MS_NODEV | MS_RDONLY, options.c_str()),
            0);
  EXPECT_TRUE(HolderClient().Put(control::kHeldFuse, {device.get()}).ok());
}

TestNode::~TestNode() {
  // With what reads still wait for; EINVAL: Abort() was enough.
  EXPECT_TRUE(umount2((folder_ / "views").c_str(), MNT_FORCE | MNT_DETACH) == 0 || errno == EINVAL)
      << strerror(errno);
  keys_.reset();
  holder_.reset();
  EXPECT_TRUE(RemoveTree(folder_).ok());
}

void TestNode::Abort() const { umount2((folder_ / "views").c_str(), MNT_FORCE); }

void TestNode::StartKeys() {
  keys_ = std::make_unique<TestKeys>(folder_ / "keys.sock", encrypted_);
}

std::unique_ptr<TestProcess> TestNode::Start(const std::vector<std::string>& flags,
                                             std::vector<std::string> wrapper) {
  return std::make_unique<TestProcess>(folder_ / "keys.sock", holder_->Connect(), flags,
                                       std::move(wrapper));
}

std::vector<std::string> TestNode::HeldNames() const { return HolderClient().List("").value(); }

oci::Digest TestNode::DigestOf(bool encrypted) {
  return oci::Digest::Of(AsBytes(encrypted ? "encrypted" : "plain"));
}

absl::Status TestNode::Open(TestProcess& process, bool encrypted) {
  return Open(process, encrypted, OpenFile(BlobPath(encrypted), O_RDONLY).value(), false,
              kOpenTimeoutMs);
}

absl::Status TestNode::OpenRemote(TestProcess& process, bool encrypted, const UniqueFd& blob,
                                  uint32_t timeout_ms) {
  return Open(process, encrypted, blob, true, timeout_ms);
}

absl::Status TestNode::Open(TestProcess& process, bool encrypted, const UniqueFd& blob, bool remote,
                            uint32_t timeout_ms) {
  const blob::TestLayer& layer = LayerOf(encrypted);
  const oci::Annotations annotations = {{std::string(oci::kIndexAnnotation), layer.ref.ToJson()}};
  const control::LayerRecord record = {keyprovider::AnnotationsToJson(annotations), remote};
  const UniqueFd memfd = SealedMemfd("record", AsBytes(control::RecordToJson(record))).value();
  v1::DataPlaneRequest request;
  request.mutable_open()->set_digest(DigestOf(encrypted).hex());
  request.mutable_open()->set_size(layer.bytes.size());
  request.mutable_open()->set_encrypted(encrypted);
  request.mutable_open()->set_timeout_ms(timeout_ms);
  request.mutable_open()->set_remote(remote);
  return process.Call(std::move(request), {blob.get(), memfd.get()}).status();
}

absl::Status TestNode::Close(TestProcess& process, bool encrypted) {
  v1::DataPlaneRequest request;
  request.mutable_close()->set_digest(DigestOf(encrypted).hex());
  return process.Call(std::move(request)).status();
}

std::string TestNode::Expected(bool encrypted) const {
  const blob::TestLayer& layer = LayerOf(encrypted);
  std::optional<crypt::LayerKey> key;
  if (encrypted) key = layer.key.Clone();
  auto reader = blob::LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(layer.bytes)),
                                        layer.ref, std::move(key));
  const auto view = view::View::Open(std::move(reader).value()).value();
  std::string bytes(view->size(), '\0');
  EXPECT_TRUE(view->Read(0, std::as_writable_bytes(std::span(bytes))).ok());
  return bytes;
}

UniqueFd OpenView(const TestNode& node, bool encrypted) {
  UniqueFd fd(open(node.ViewPath(encrypted).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  EXPECT_TRUE(fd.valid()) << strerror(errno);
  return fd;
}

std::string ReadAll(const UniqueFd& fd, size_t piece) {
  std::string bytes;
  void* buffer = nullptr;
  EXPECT_EQ(posix_memalign(&buffer, 4096, piece), 0);
  for (;;) {
    const ssize_t n = pread(fd.get(), buffer, piece, static_cast<off_t>(bytes.size()));
    if (n <= 0) break;
    bytes.append(static_cast<const char*>(buffer), static_cast<size_t>(n));
  }
  free(buffer);
  return bytes;
}

}  // namespace kapsule::fuse::testing
