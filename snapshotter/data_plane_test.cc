// What the data plane does when all is well, and what it refuses.
#include "snapshotter/data_plane.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <set>

#include "snapshotter/data_plane_test_node.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using blob::MakeTestFile;
using blob::SampleFiles;
using blob::TestBytes;
using testing::CompareTree;
using testing::kTestGid;
using testing::kTestUid;
using testing::StatusLine;
using testing::StoredLayer;

class OpenTest : public testing::DataPlaneTest {
 protected:
  void SetUp() override {
    DataPlaneTest::SetUp();
    StartPlane();
  }
  absl::StatusCode CodeOfOpen(const StoredLayer& layer, const oci::Annotations& annotations) {
    return Open(layer, annotations).status().code();
  }
  absl::Status Authorise(const StoredLayer& layer, const oci::Annotations& annotations) {
    return plane_->Authorise(layer.digest, annotations, absl::Now() + absl::Seconds(20));
  }
  absl::Status Close(const StoredLayer& layer) {
    return plane_->Close(layer.digest, absl::Now() + absl::Seconds(20));
  }
  int OpenBlobs() const {  // descriptors of blobs that kapsule-fuse holds
    int n = 0;
    std::error_code closed_meanwhile;
    for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/fd", plane_->pid())))
      n += fs::read_symlink(entry, closed_meanwhile).filename().string().starts_with("blob-");
    return n;
  }
};

TEST_F(OpenTest, AnEncryptedLayerIsReadThroughErofs) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  const auto view = Open(layer);
  ASSERT_TRUE(view.ok()) << view.status();
  const auto mounted = Mount(*view);
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_EQ(CompareTree((*mounted)->path(), layer.layer), "");
  EXPECT_EQ(keys_->last_peer(), kTestUid);
}

TEST_F(OpenTest, APlainLayerIsReadWithoutKeyprovider) {
  keys_.reset();
  const StoredLayer layer = StorePlain(SampleFiles());
  const auto view = Open(layer);
  ASSERT_TRUE(view.ok()) << view.status();
  const auto mounted = Mount(*view);
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_EQ(CompareTree((*mounted)->path(), layer.layer), "");
}

TEST_F(OpenTest, AFileCanBeMapped) {
  const std::string content = TestBytes((5 << 20) + 17, 3);
  const StoredLayer layer = Store({MakeTestFile("weights", content)}, key_);
  const auto view = Open(layer);
  ASSERT_TRUE(view.ok()) << view.status();
  const auto mounted = Mount(*view);
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  const auto fd = OpenFile((*mounted)->path() / "weights", O_RDONLY);
  ASSERT_TRUE(fd.ok());
  void* pages = mmap(nullptr, content.size(), PROT_READ, MAP_SHARED, fd->get(), 0);
  ASSERT_NE(pages, MAP_FAILED);
  EXPECT_EQ(std::memcmp(pages, content.data(), content.size()), 0);
  munmap(pages, content.size());
}

TEST_F(OpenTest, TheDirectoryIsFlatAndReadOnly) {
  const StoredLayer a = Store(SampleFiles(), key_), b = StorePlain(SampleFiles());
  ASSERT_TRUE(Open(a).ok());
  ASSERT_TRUE(Open(b).ok());
  std::set<std::string> names, expected = {a.digest.hex(), b.digest.hex()};
  for (const auto& entry : fs::directory_iterator(folder_ / "views"))
    names.insert(entry.path().filename());
  EXPECT_EQ(names, expected);
  const fs::path view = folder_ / "views" / a.digest.hex();
  struct stat st;
  ASSERT_EQ(stat(view.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode, S_IFREG | 0400u);
  EXPECT_GT(st.st_size, 0);
  EXPECT_EQ(open(view.c_str(), O_WRONLY | O_CLOEXEC), -1);
  EXPECT_EQ(errno, EROFS);
  // Opcodes that it does not know.
  EXPECT_EQ(getxattr(view.c_str(), "user.x", nullptr, 0), -1);
  EXPECT_EQ(errno, EOPNOTSUPP);
  EXPECT_EQ(open((folder_ / "views" / std::string(64, '0')).c_str(), O_RDONLY | O_CLOEXEC), -1);
  EXPECT_EQ(errno, ENOENT);
}

TEST_F(OpenTest, TheProcessHasNoRightsAndNoNetwork) {
  const pid_t pid = plane_->pid();
  const std::string uid = std::to_string(kTestUid), gid = std::to_string(kTestGid);
  EXPECT_EQ(StatusLine(pid, "Uid"), fmt::format("{0}\t{0}\t{0}\t{0}", uid));
  EXPECT_EQ(StatusLine(pid, "Gid"), fmt::format("{0}\t{0}\t{0}\t{0}", gid));
  EXPECT_EQ(StatusLine(pid, "Groups").find_first_not_of(' '), std::string::npos);
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"})
    EXPECT_EQ(StatusLine(pid, set), "0000000000000000") << set;
  EXPECT_EQ(StatusLine(pid, "NoNewPrivs"), "1");
  EXPECT_NE(fs::read_symlink(fmt::format("/proc/{}/ns/net", pid)),
            fs::read_symlink("/proc/self/ns/net"));
  struct stat st;  // of a process that is not dumpable, /proc belongs to root
  ASSERT_EQ(stat(fmt::format("/proc/{}/mem", pid).c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 0u);
  std::ifstream limits(fmt::format("/proc/{}/limits", pid));
  const std::string text(std::istreambuf_iterator<char>(limits), {});
  EXPECT_NE(text.find("Max core file size        0                    0 "), std::string::npos);
  int fds = 0;
  for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/fd", pid))) {
    const std::string target = fs::read_symlink(entry);
    EXPECT_EQ(target.find("keys.sock"), std::string::npos);
    ++fds;
  }
  EXPECT_LE(fds, 10);  // 0-2, control, holder, /dev/fuse, requests, signalfd, two eventfds
}

TEST_F(OpenTest, AKeyOfAnotherNodeIsNotFound) {
  const StoredLayer layer = Store(SampleFiles(), other_key_);
  const auto view = Open(layer);
  EXPECT_EQ(view.status().code(), absl::StatusCode::kNotFound) << view.status();
  EXPECT_NE(Message(view.status()).find(layer.digest.text()), std::string::npos);
  EXPECT_FALSE(fs::exists(folder_ / "views" / layer.digest.hex()));
  EXPECT_EQ(OpenBlobs(), 0);
}

TEST_F(OpenTest, TheMountReadsAheadTwoRequests) {
  struct stat st;
  ASSERT_EQ(stat((folder_ / "views").c_str(), &st), 0);
  std::ifstream in(
      fmt::format("/sys/class/bdi/{}:{}/read_ahead_kb", major(st.st_dev), minor(st.st_dev)));
  int kib = 0;
  in >> kib;
  EXPECT_EQ(kib, 2048);
}

TEST_F(OpenTest, AMissingKeyproviderIsUnavailable) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  keys_.reset();
  EXPECT_EQ(Open(layer).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(OpenTest, ALayerWithoutIndexInItsPrivateOptionsIsUnimplemented) {
  const StoredLayer layer = Store(SampleFiles(), key_, /*with_index=*/false);
  const auto view = Open(layer);
  EXPECT_EQ(view.status().code(), absl::StatusCode::kUnimplemented) << view.status();
  EXPECT_NE(Message(view.status()).find("index"), std::string::npos);
}

TEST_F(OpenTest, TheAnnotationMustAgreeWithThePrivateOptions) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  oci::Annotations annotations = layer.annotations;
  oci::IndexRef other = layer.layer.ref;
  other.offset += 65536;
  annotations[oci::kIndexAnnotation] = other.ToJson();
  EXPECT_EQ(CodeOfOpen(layer, annotations), absl::StatusCode::kInvalidArgument);
  annotations.erase(oci::kIndexAnnotation);
  EXPECT_EQ(CodeOfOpen(layer, annotations), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Open(layer).ok());
}

TEST_F(OpenTest, TheBlobMustBeWhatIsSaid) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  const auto open = [&](uint64_t size, int flags) {
    return plane_
        ->Open(layer.digest, size, true, OpenFile(layer.path, flags).value(), layer.annotations,
               deadline)
        .status()
        .code();
  };
  const uint64_t size = layer.layer.bytes.size();
  EXPECT_EQ(open(size + 1, O_RDONLY), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(open(size, O_RDWR), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(open(size, O_PATH), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(open(size, O_RDONLY), absl::StatusCode::kOk);
}

TEST_F(OpenTest, OnlyTheSameKeyNonceAndRootAreAuthorised) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  EXPECT_EQ(Authorise(layer, layer.annotations).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Open(layer).ok());
  EXPECT_TRUE(Authorise(layer, layer.annotations).ok());
  EXPECT_TRUE(Authorise(layer, Rewrap(layer.layer, key_)).ok());
  EXPECT_EQ(Authorise(layer, Rewrap(layer.layer, other_key_)).code(), absl::StatusCode::kNotFound);
  // Anyone can wrap options of their own for this node's public key.
  const StoredLayer forged = Store(SampleFiles(), key_);
  EXPECT_EQ(Authorise(layer, forged.annotations).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Open(layer, forged.annotations).status().code(), absl::StatusCode::kPermissionDenied);
  blob::TestLayer other_key = blob::BuildTestLayer(SampleFiles(), true);
  other_key.ref = layer.layer.ref;
  EXPECT_EQ(Authorise(layer, Rewrap(other_key, key_)).code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(OpenTest, AClosedViewIsGoneButLivesForWhoHasItOpen) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  const auto view = Open(layer);
  ASSERT_TRUE(view.ok()) << view.status();
  {
    const auto mounted = Mount(*view);
    ASSERT_TRUE(mounted.ok()) << mounted.status();
    ASSERT_TRUE(Close(layer).ok());
    EXPECT_FALSE(fs::exists(*view));
    EXPECT_EQ(CompareTree((*mounted)->path(), layer.layer), "");
    EXPECT_EQ(OpenBlobs(), 1);
    ASSERT_TRUE(Open(layer).ok());  // the same view, back in the directory
    EXPECT_TRUE(fs::exists(*view));
    EXPECT_EQ(OpenBlobs(), 1);
    ASSERT_TRUE(Close(layer).ok());
  }
  for (int i = 0; i < 3000 && OpenBlobs() != 0; ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(OpenBlobs(), 0);
  EXPECT_TRUE(Close(layer).ok());  // of what is not open
}

TEST_F(OpenTest, EightReadersReadTogether) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  const auto view = Open(layer);
  ASSERT_TRUE(view.ok()) << view.status();
  const auto mounted = Mount(*view);
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  std::vector<std::string> differences(8);
  std::vector<std::thread> readers;
  for (std::string& difference : differences)
    readers.emplace_back([&] {
      for (int round = 0; round < 3 && difference.empty(); ++round) {
        difference = CompareTree((*mounted)->path(), layer.layer);
        std::ofstream("/proc/sys/vm/drop_caches") << "1";  // the next round reads again
      }
    });
  for (std::thread& reader : readers) reader.join();
  for (const std::string& difference : differences) EXPECT_EQ(difference, "");
}

TEST_F(OpenTest, ManyOpeningsOfOneLayerGiveOneView) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  std::vector<std::thread> threads;
  std::atomic<int> opened = 0;
  for (int i = 0; i < 12; ++i) threads.emplace_back([&] { opened += Open(layer).ok(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(opened, 12);
  EXPECT_EQ(OpenBlobs(), 1);
}

TEST_F(OpenTest, ASlowKeyproviderHoldsUpNothingElse) {
  const StoredLayer served = Store(SampleFiles(), key_), plain = StorePlain(SampleFiles());
  const StoredLayer slow = Store(SampleFiles(), key_);
  const auto view = Open(served);
  ASSERT_TRUE(view.ok()) << view.status();
  const auto mounted = Mount(*view);
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  keys_->SetDelay(absl::Seconds(30));
  std::vector<std::thread> waiting;
  std::atomic<int> late = 0;
  const absl::Time begin = absl::Now();
  for (int i = 0; i < 8; ++i)
    waiting.emplace_back(
        [&] { late += absl::IsDeadlineExceeded(Open(slow, absl::Seconds(5)).status()); });
  EXPECT_TRUE(Open(plain).ok());
  EXPECT_EQ(CompareTree((*mounted)->path(), served.layer), "");
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
  for (std::thread& thread : waiting) thread.join();
  EXPECT_EQ(late, 8);
}

}  // namespace
}  // namespace kapsule::snapshotter
