#include "snapshotter/data_plane_test_node.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <fstream>

#include "core/base/unix_socket.h"
#include "core/crypt/keywrap_jwe.h"
#include "core/keyprovider/wire.h"
#include "core/mounts/erofs_mount.h"

namespace kapsule::snapshotter::testing {
namespace fs = std::filesystem;

KeyServer::KeyServer(const fs::path& socket)
    : listener_(ListenUnix(socket, SOCK_SEQPACKET, 0666).value()) {
  thread_ = std::thread([this] { Run(); });
}

KeyServer::~KeyServer() {
  stopping_ = true;
  shutdown(listener_.get(), SHUT_RDWR);
  thread_.join();
}

void KeyServer::SetKeys(std::vector<crypt::Key> keys) {
  const std::lock_guard lock(mu_);
  keys_ = std::move(keys);
}

void KeyServer::Run() {
  std::vector<std::thread> threads;
  while (!stopping_) {
    UniqueFd connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!connection.valid()) continue;
    auto shared = std::make_shared<UniqueFd>(std::move(connection));
    threads.emplace_back([this, shared] { Answer(std::move(*shared)); });
  }
  for (std::thread& thread : threads) thread.join();
}

void KeyServer::Answer(UniqueFd connection) {
  ++requests_;
  last_peer_ = PeerOf(connection.get()).value().uid;
  const auto request = keyprovider::ReceiveRequest(connection.get());
  if (!request.ok()) return;
  const absl::Time begin = absl::Now();
  while (absl::Now() - begin < absl::Milliseconds(delay_ms_.load()) && !stopping_)
    absl::SleepFor(absl::Milliseconds(10));
  std::vector<crypt::Key> keys;
  {
    const std::lock_guard lock(mu_);
    keys = keys_;
  }
  const auto unwrap = [&]() -> absl::StatusOr<keyprovider::UnwrappedLayer> {
    ASSIGN_OR_RETURN(const oci::Annotations annotations,
                     keyprovider::AnnotationsFromJson(request->annotations_json));
    ASSIGN_OR_RETURN(crypt::PrivateOptions options, crypt::UnwrapLayer(annotations, keys));
    return keyprovider::UnwrappedLayer{std::move(options.key), options.index};
  };
  (void)keyprovider::SendReply(connection.get(), unwrap());  // the client may have gone
}

namespace {

int CountEntries(const fs::path& folder) {
  std::error_code error;
  int n = 0;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) ++n;
  return n;
}

int CountMounts(const fs::path& folder) {
  std::ifstream in("/proc/self/mountinfo");
  int n = 0;
  for (std::string line; std::getline(in, line);)
    n += line.find(" " + folder.string() + "/") != std::string::npos;
  return n;
}

int CountChildren() {
  int n = 0;
  std::error_code error;
  for (fs::directory_iterator it("/proc/self/task", error), end; !error && it != end;
       it.increment(error)) {
    std::ifstream in(it->path() / "children");
    for (std::string pid; in >> pid;) ++n;
  }
  return n;
}

}  // namespace

Census TakeCensus(const fs::path& folder) {
  return {CountEntries("/proc/self/fd"), CountChildren(), CountMounts(folder)};
}

void PrintTo(const Census& census, std::ostream* out) {
  *out << census.fds << " fds, " << census.children << " children, " << census.mounts << " mounts";
}

absl::StatusOr<std::unique_ptr<ErofsMount>> ErofsMount::Make(const fs::path& view,
                                                             const fs::path& target) {
  RETURN_IF_ERROR(MakeDirs(target, 0755));
  RETURN_IF_ERROR(ErofsMounter().Mount(view, target));
  return std::unique_ptr<ErofsMount>(new ErofsMount(target));
}

ErofsMount::~ErofsMount() {
  if (umount2(target_.c_str(), MNT_DETACH) != 0) ADD_FAILURE() << "umount " << target_;
}

void DataPlaneTest::SetUp() {
  ASSERT_EQ(geteuid(), 0u) << "this test needs root";
  std::string name = "/tmp/kapsule-data-plane-XXXXXX";
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  folder_ = name;
  before_ = TakeCensus(folder_);
  ASSERT_EQ(chmod(name.c_str(), 0711), 0);  // the keyprovider's socket is in it
  key_ = crypt::GenerateKey("ec-p256").value();
  other_key_ = crypt::GenerateKey("ec-p256").value();
  keys_ = std::make_unique<KeyServer>(folder_ / "keys.sock");
  keys_->SetKeys({key_});
}

void DataPlaneTest::TearDown() {
  plane_.reset();
  keys_.reset();
  if (folder_.empty()) return;
  // Another process would not be the parent of what it adopted.
  const absl::Time patience = absl::Now() + absl::Seconds(30);
  while (left_ && waitpid(-1, nullptr, WNOHANG) >= 0 && absl::Now() < patience)
    absl::SleepFor(absl::Milliseconds(5));
  EXPECT_EQ(TakeCensus(folder_), before_);
  EXPECT_TRUE(RemoveTree(folder_).ok());
}

DataPlane::Options DataPlaneTest::Options() const {
  DataPlane::Options options;
  options.views = folder_ / "views";
  options.program = FuseProgram();
  options.holder_program = FuseProgram().parent_path() / "kapsule-holder";
  options.holder_socket = folder_ / "holder.sock";
  options.uid = kTestUid;
  options.gid = kTestGid;
  options.keyprovider_socket = folder_ / "keys.sock";
  return options;
}

void DataPlaneTest::LeavePlane() {
  plane_->Leave();
  plane_.reset();
  left_ = true;
}

void DataPlaneTest::StartPlane(DataPlane::Options options) {
  auto plane = DataPlane::Start(std::move(options));
  ASSERT_TRUE(plane.ok()) << plane.status();
  plane_ = std::move(*plane);
}

oci::Annotations DataPlaneTest::Rewrap(const blob::TestLayer& layer, const crypt::Key& recipient,
                                       bool with_index) const {
  crypt::PrivateOptions options;
  options.key = layer.key.Clone();
  if (with_index) options.index = layer.ref;
  oci::Annotations annotations =
      crypt::WrapLayer(options, crypt::PublicOptions(), std::vector{recipient}).value();
  annotations[oci::kIndexAnnotation] = layer.ref.ToJson();
  return annotations;
}

StoredLayer DataPlaneTest::StoreBlob(blob::TestLayer layer) {
  StoredLayer stored;
  stored.digest = oci::Digest::Of(AsBytes(layer.bytes));
  stored.path = folder_ / fmt::format("blob-{}", next_++);
  EXPECT_TRUE(WriteFileAtomic(stored.path, AsBytes(layer.bytes), 0600).ok());
  stored.layer = std::move(layer);
  return stored;
}

StoredLayer DataPlaneTest::Store(const std::vector<blob::TestFile>& files,
                                 const crypt::Key& recipient, bool with_index,
                                 uint32_t chunk_size) {
  StoredLayer stored = StoreBlob(blob::BuildTestLayer(files, true, chunk_size));
  stored.annotations = Rewrap(stored.layer, recipient, with_index);
  stored.encrypted = true;
  return stored;
}

StoredLayer DataPlaneTest::StorePlain(const std::vector<blob::TestFile>& files) {
  StoredLayer stored = StoreBlob(blob::BuildTestLayer(files, false));
  stored.annotations[oci::kIndexAnnotation] = stored.layer.ref.ToJson();
  return stored;
}

namespace {

absl::StatusOr<fs::path> OpenIn(DataPlane& plane, const StoredLayer& layer,
                                const oci::Annotations& annotations, absl::Duration timeout) {
  // A tmpfs of Linux 6.1 takes no O_DIRECT.
  absl::StatusOr<UniqueFd> blob = OpenFile(layer.path, O_RDONLY | O_DIRECT);
  if (!blob.ok()) blob = OpenFile(layer.path, O_RDONLY);
  RETURN_IF_ERROR(blob.status());
  return plane.Open(layer.digest, layer.layer.bytes.size(), layer.encrypted, *std::move(blob),
                    annotations, absl::Now() + timeout);
}

}  // namespace

absl::StatusOr<fs::path> DataPlaneTest::Open(const StoredLayer& layer, absl::Duration timeout) {
  return OpenIn(*plane_, layer, layer.annotations, timeout);
}

absl::StatusOr<fs::path> DataPlaneTest::Open(const StoredLayer& layer,
                                             const oci::Annotations& annotations) {
  return OpenIn(*plane_, layer, annotations, absl::Seconds(20));
}

absl::StatusOr<std::unique_ptr<ErofsMount>> DataPlaneTest::Mount(const fs::path& view) {
  return ErofsMount::Make(view, folder_ / fmt::format("mount-{}", next_++));
}

void SendSignal(pid_t pid, int signal) {
  ASSERT_GT(pid, 1);
  ASSERT_EQ(kill(pid, signal), 0);
}

bool IsAlive(pid_t pid) { return pid > 1 && kill(pid, 0) == 0; }

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 3000; ++i) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return false;
}

namespace {

std::string CompareFile(const fs::path& path, std::string_view expected) {
  const auto fd = OpenFile(path, O_RDONLY);
  if (!fd.ok()) return Message(fd.status());
  struct stat st;
  if (fstat(fd->get(), &st) != 0 || static_cast<size_t>(st.st_size) != expected.size())
    return path.string() + " has another size";
  // Odd pieces, from the middle to the end, then the beginning.
  std::vector<char> piece(70'001);
  size_t step = 1;
  for (size_t at = expected.size() / 2; at < expected.size() * 3 / 2; at += step) {
    const size_t offset = at % expected.size();
    step = std::min({piece.size(), step * 3, expected.size() - offset});
    if (pread(fd->get(), piece.data(), step, static_cast<off_t>(offset)) !=
        static_cast<ssize_t>(step))
      return fmt::format("{}: short read at {}", path.string(), offset);
    if (std::memcmp(piece.data(), expected.data() + offset, step) != 0)
      return fmt::format("{} differs at {}", path.string(), offset);
  }
  return "";
}

}  // namespace

std::string CompareTree(const fs::path& root, const blob::TestLayer& layer) {
  int files = 0;
  for (const archive::TocEntry& entry : layer.toc.entries) {
    if (entry.type != archive::EntryType::kFile) continue;
    const std::string difference = CompareFile(
        root / entry.path, std::string_view(layer.plain).substr(entry.offset, entry.size));
    if (!difference.empty()) return difference;
    ++files;
  }
  return files > 0 ? "" : "no files in the layer";
}

namespace {

void DropFromCache(const fs::path& root, const blob::TestLayer& layer) {
  for (const archive::TocEntry& entry : layer.toc.entries) {
    if (entry.type != archive::EntryType::kFile) continue;
    const auto fd = OpenFile(root / entry.path, O_RDONLY);
    if (fd.ok()) posix_fadvise(fd->get(), 0, 0, POSIX_FADV_DONTNEED);
  }
}

}  // namespace

Reader::Reader(fs::path root, const blob::TestLayer& layer)
    : root_(std::move(root)), layer_(layer), thread_([this] { Run(); }) {}

Reader::~Reader() {
  stopping_ = true;
  thread_.join();
}

void Reader::Run() {
  while (!stopping_) {
    DropFromCache(root_, layer_);
    const std::string difference = CompareTree(root_, layer_);
    ++rounds_;
    const std::lock_guard lock(mu_);
    if (problem_.empty()) problem_ = difference;
  }
}

std::string Reader::problem() const {
  const std::lock_guard lock(mu_);
  return problem_;
}

bool Reader::WaitForRounds(int rounds) const {
  const int until = rounds_ + rounds + 1;
  for (int i = 0; i < 3000 && rounds_ < until; ++i) absl::SleepFor(absl::Milliseconds(10));
  return rounds_ >= until;
}

std::vector<pid_t> ChildrenNamed(const std::string& name) {
  std::vector<pid_t> found;
  std::error_code error;
  for (fs::directory_iterator it("/proc/self/task", error), end; !error && it != end;
       it.increment(error)) {
    std::ifstream in(it->path() / "children");
    for (pid_t pid; in >> pid;) {
      if (StatusLine(pid, "Name") == name) found.push_back(pid);
    }
  }
  return found;
}

std::string StatusLine(pid_t pid, const std::string& name) {
  std::ifstream in(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(in, line);)
    if (line.rfind(name + ":\t", 0) == 0) return line.substr(name.size() + 2);
  return "no such line";
}

fs::path FuseProgram() { return fs::read_symlink("/proc/self/exe").parent_path() / "kapsule-fuse"; }

}  // namespace kapsule::snapshotter::testing
