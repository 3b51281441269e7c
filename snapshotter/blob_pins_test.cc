#include "snapshotter/blob_pins.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class BlobPinsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
    ASSERT_TRUE(MakeDirs(content() / "blobs/sha256", 0700).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }

  fs::path content() const { return fs::path(dir_) / "content"; }
  fs::path folder() const { return fs::path(dir_) / "pins"; }
  fs::path Link(const oci::Digest& digest) const { return folder() / digest.hex(); }
  oci::Digest Put(const std::string& bytes) const {
    const oci::Digest digest = oci::Digest::Of(AsBytes(bytes));
    EXPECT_TRUE(
        WriteFileAtomic(content() / "blobs/sha256" / digest.hex(), AsBytes(bytes), 0644).ok());
    return digest;
  }
  std::unique_ptr<BlobPins> Start(const std::set<oci::Digest>& keep = {}) const {
    auto pins = BlobPins::Start(folder(), content(), keep);
    EXPECT_TRUE(pins.ok()) << pins.status();
    return *std::move(pins);
  }
  static std::string Read(const absl::StatusOr<UniqueFd>& fd) {
    if (!fd.ok()) return Describe(fd.status());
    alignas(4096) char buffer[4096];
    const ssize_t n = pread(fd->get(), buffer, sizeof(buffer), 0);
    return n < 0 ? "read failed" : std::string(buffer, static_cast<size_t>(n));
  }

  std::string dir_ = "/tmp/kapsule-pins-XXXXXX";
};

TEST_F(BlobPinsTest, KeepsABlobThatTheContentStoreDrops) {
  const oci::Digest digest = Put("ciphertext");
  const auto pins = Start();
  EXPECT_EQ(Read(pins->Open(digest, 10)), "ciphertext");
  fs::remove(content() / "blobs/sha256" / digest.hex());
  EXPECT_EQ(Read(pins->Open(digest, 10)), "ciphertext");
  // And over a restart.
  EXPECT_EQ(Read(Start({digest})->Open(digest, 10)), "ciphertext");
}

TEST_F(BlobPinsTest, LinksAndDoesNotCopy) {
  const oci::Digest digest = Put("ciphertext");
  const auto pins = Start();
  ASSERT_TRUE(pins->Open(digest, 10).ok());
  EXPECT_EQ(fs::hard_link_count(Link(digest)), 2u);
  struct stat st;
  ASSERT_EQ(stat(folder().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0700u);
}

TEST_F(BlobPinsTest, GivesReadOnlyDescriptors) {
  const oci::Digest digest = Put("ciphertext");
  const auto pins = Start();
  const auto fd = pins->Open(digest, 10);
  ASSERT_TRUE(fd.ok());
  EXPECT_EQ(fcntl(fd->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_NE(fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(BlobPinsTest, ReleaseRemovesTheLink) {
  const oci::Digest digest = Put("ciphertext");
  const auto pins = Start();
  ASSERT_TRUE(pins->Open(digest, 10).ok());
  pins->Release(digest);
  EXPECT_FALSE(fs::exists(Link(digest)));
  EXPECT_EQ(fs::hard_link_count(content() / "blobs/sha256" / digest.hex()), 1u);
  pins->Release(digest);  // nothing to do
}

TEST_F(BlobPinsTest, IsUnavailableWhileTheBlobIsNotThere) {
  const auto pins = Start();
  const oci::Digest digest = oci::Digest::Of(AsBytes("later"));
  const absl::Status status = pins->Open(digest, 5).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("not downloaded yet"));
  EXPECT_THAT(Message(status), HasSubstr(digest.text()));
  Put("later");
  EXPECT_EQ(Read(pins->Open(digest, 5)), "later");
}

TEST_F(BlobPinsTest, RefusesAnotherSizeAndPinsNothing) {
  const oci::Digest digest = Put("ciphertext");
  const auto pins = Start();
  EXPECT_TRUE(absl::IsInvalidArgument(pins->Open(digest, 9).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(pins->Open(digest, 11).status()));
  EXPECT_FALSE(fs::exists(Link(digest)));
}

TEST_F(BlobPinsTest, ReplacesALinkOfAnotherSize) {
  const oci::Digest digest = Put("ciphertext");
  ASSERT_TRUE(MakeDirs(folder(), 0700).ok());
  ASSERT_TRUE(WriteFileAtomic(Link(digest), AsBytes("cut"), 0600).ok());
  EXPECT_EQ(Read(Start({digest})->Open(digest, 10)), "ciphertext");
}

TEST_F(BlobPinsTest, AWrongSizeDoesNotTouchTheOnlyCopy) {
  const oci::Digest digest = Put("ciphertext");
  ASSERT_TRUE(Start()->Open(digest, 10).ok());
  fs::remove(content() / "blobs/sha256" / digest.hex());
  const auto pins = Start({digest});
  for (const uint64_t size : {0, 9, 11})
    EXPECT_TRUE(absl::IsInvalidArgument(pins->Open(digest, size).status())) << size;
  EXPECT_EQ(Read(pins->Open(digest, 10)), "ciphertext");
}

TEST_F(BlobPinsTest, AWrongSizeDoesNotReplaceTheLinkByABlobOfTheSameKind) {
  const oci::Digest digest = Put("ciphertext");
  const auto pins = Start();
  ASSERT_TRUE(pins->Open(digest, 10).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(pins->Open(digest, 9).status()));
  EXPECT_EQ(fs::hard_link_count(Link(digest)), 2u);
}

TEST_F(BlobPinsTest, ReplacingALinkLeavesNothingBeside) {
  const oci::Digest digest = Put("ciphertext");
  ASSERT_TRUE(MakeDirs(folder(), 0700).ok());
  ASSERT_TRUE(WriteFileAtomic(Link(digest), AsBytes("cut"), 0600).ok());
  const auto pins = Start({digest});
  // What a crash between linking and renaming leaves.
  fs::create_hard_link(content() / "blobs/sha256" / digest.hex(),
                       folder() / ("new-" + digest.hex()));
  ASSERT_TRUE(pins->Open(digest, 10).ok());
  EXPECT_EQ(fs::hard_link_count(Link(digest)), 2u);
  EXPECT_FALSE(fs::exists(folder() / ("new-" + digest.hex())));
}

TEST_F(BlobPinsTest, ALayerThatIsNotHeldHasNoDescriptor) {
  const auto count = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  const oci::Digest digest = Put("ciphertext");
  const auto pins = Start();
  const auto before = count();
  ASSERT_TRUE(pins->Open(digest, 10).ok());
  EXPECT_EQ(count(), before);
  pins->Hold(digest, pins->Open(digest, 10).value());
  EXPECT_EQ(count(), before);  // the link is enough
  EXPECT_TRUE(fs::exists(Link(digest)));
}

TEST_F(BlobPinsTest, RefusesALinkThatIsSymbolic) {
  const oci::Digest digest = oci::Digest::Of(AsBytes("secret"));
  fs::create_symlink("/etc/passwd", content() / "blobs/sha256" / digest.hex());
  EXPECT_FALSE(Start()->Open(digest, fs::file_size("/etc/passwd")).ok());
}

TEST_F(BlobPinsTest, StartSweepsWhatNoLayerNeeds) {
  const oci::Digest kept = Put("kept"), stale = Put("stale");
  {
    const auto pins = Start();
    ASSERT_TRUE(pins->Open(kept, 4).ok());
    ASSERT_TRUE(pins->Open(stale, 5).ok());
  }
  const auto pins = Start({kept});
  EXPECT_TRUE(fs::exists(Link(kept)));
  EXPECT_FALSE(fs::exists(Link(stale)));
}

TEST_F(BlobPinsTest, HoldsADescriptorWhereTheContentStoreIsElsewhere) {
  ASSERT_EQ(mount("tmpfs", content().c_str(), "tmpfs", 0, "size=1m"), 0);
  ASSERT_TRUE(MakeDirs(content() / "blobs/sha256", 0700).ok());
  {
    const oci::Digest digest = Put("ciphertext");
    const auto pins = Start();
    absl::StatusOr<UniqueFd> fd = pins->Open(digest, 10);
    EXPECT_EQ(Read(fd), "ciphertext");
    EXPECT_FALSE(fs::exists(Link(digest)));
    pins->Hold(digest, *std::move(fd));
    EXPECT_TRUE(absl::IsInvalidArgument(pins->Open(digest, 9).status()));
    fs::remove(content() / "blobs/sha256" / digest.hex());
    EXPECT_EQ(Read(pins->Open(digest, 10)), "ciphertext");
    pins->Release(digest);
    EXPECT_TRUE(absl::IsUnavailable(pins->Open(digest, 10).status()));
  }
  EXPECT_EQ(umount(content().c_str()), 0);
}

}  // namespace
}  // namespace kapsule::snapshotter
