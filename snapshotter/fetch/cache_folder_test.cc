#include "snapshotter/fetch/cache_folder.h"

#include <absl/time/clock.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <thread>

namespace kapsule::fetch {
namespace {

namespace fs = std::filesystem;

class CacheFolderTest : public testing::Test {
 protected:
  ~CacheFolderTest() override { EXPECT_TRUE(RemoveTree(path_).ok()); }
  absl::StatusOr<std::unique_ptr<CacheFolder>> Open(absl::Duration wait = absl::ZeroDuration()) {
    return CacheFolder::Open(cache_, geteuid(), getegid(), wait);
  }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(cache_ / name) << text;
  }

  static std::string MakeFolder() {
    char name[] = "/tmp/kapsule-cache-test-XXXXXX";
    return mkdtemp(name);
  }

  const fs::path path_ = MakeFolder();
  const fs::path cache_ = path_ / "a/cache";
  const oci::Digest blob_ = oci::Digest::Of(AsBytes("blob"));
};

TEST_F(CacheFolderTest, IsMadeForItsOwnerAlone) {
  ASSERT_TRUE(Open().ok());
  struct stat st;
  ASSERT_EQ(stat(cache_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0700u);
}

TEST_F(CacheFolderTest, HasOneUserAtATime) {
  auto first = Open();
  ASSERT_TRUE(first.ok());
  const auto second = Open();
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  std::thread ends([&] {
    absl::SleepFor(absl::Milliseconds(100));
    first->reset();
  });
  EXPECT_TRUE(Open(absl::Seconds(10)).ok());
  ends.join();
}

TEST_F(CacheFolderTest, AFolderOfSomebodyElseIsRefused) {
  fs::create_directories(cache_);
  ASSERT_EQ(chown(cache_.c_str(), 4711, 4711), 0) << "run as root";
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CacheFolderTest, WhatIsNotOfTheCacheIsRemoved) {
  auto folder = Open().value();
  ASSERT_TRUE(folder->CreateBlob(blob_, 1000).ok());
  ASSERT_TRUE(folder->WriteList(blob_, AsBytes("list")).ok());
  const std::string other = oci::Digest::Of(AsBytes("other")).hex();
  Write("readme", "x");
  Write(other + ".blocks", "a list without its blob");
  Write(blob_.hex() + ".blocks.new", "cut short");
  Write(std::string(64, 'A'), "x");
  fs::create_directory(cache_ / "folder");
  fs::create_symlink("/etc/passwd", cache_ / oci::Digest::Of(AsBytes("link")).hex());
  ASSERT_EQ(mkfifo((cache_ / oci::Digest::Of(AsBytes("pipe")).hex()).c_str(), 0600), 0);

  const auto found = folder->Scan();
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 1u);
  EXPECT_EQ(found->front().blob, blob_);
  EXPECT_EQ(std::distance(fs::directory_iterator(cache_), {}), 2);
  EXPECT_TRUE(fs::exists("/etc/passwd"));
}

TEST_F(CacheFolderTest, ALinkInPlaceOfABlobIsNotFollowed) {
  auto folder = Open().value();
  std::ofstream(path_ / "precious") << "precious";
  fs::create_symlink(path_ / "precious", cache_ / blob_.hex());
  EXPECT_FALSE(folder->OpenBlob(blob_, O_RDWR).ok());
  fs::create_symlink(path_ / "precious", cache_ / (blob_.hex() + ".blocks"));
  EXPECT_FALSE(folder->ReadList(blob_).ok());
  ASSERT_TRUE(folder->CreateBlob(blob_, 10).ok());
  EXPECT_EQ(ReadFile(path_ / "precious", 100).value(), "precious");
  EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(cache_ / blob_.hex())));
}

TEST_F(CacheFolderTest, ANewBlobHasNoOldList) {
  auto folder = Open().value();
  ASSERT_TRUE(folder->CreateBlob(blob_, 10).ok());
  ASSERT_TRUE(folder->WriteList(blob_, AsBytes("list")).ok());
  EXPECT_EQ(folder->ReadList(blob_).value(), "list");
  fs::remove(cache_ / blob_.hex());
  ASSERT_TRUE(folder->CreateBlob(blob_, 10).ok());
  EXPECT_TRUE(absl::IsNotFound(folder->ReadList(blob_).status()));
  ASSERT_TRUE(folder->Remove(blob_).ok());
  ASSERT_TRUE(folder->Remove(blob_).ok());
  EXPECT_TRUE(fs::is_empty(cache_));
}

}  // namespace
}  // namespace kapsule::fetch
