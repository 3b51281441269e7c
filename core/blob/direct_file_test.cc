#include "core/blob/direct_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#include "core/blob/test_layer.h"

namespace kapsule::blob {
namespace {

class DirectFileTest : public testing::Test {
 protected:
  // /tmp lies on a disk, where O_DIRECT works; /dev/shm is a tmpfs.
  std::string Make(std::string folder, const std::string& bytes) {
    folder += "/kapsule-direct-XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folders_.push_back(folder);
    EXPECT_TRUE(WriteFileAtomic(folder + "/f", AsBytes(bytes), 0600).ok());
    return folder + "/f";
  }
  void TearDown() override {
    for (const std::string& folder : folders_) {
      EXPECT_TRUE(RemoveTree(folder).ok());
    }
  }

 private:
  std::vector<std::string> folders_;
};

void ExpectReads(const DirectFileReader& file, const std::string& bytes) {
  AlignedBuffer aligned(1 << 20);
  std::string unaligned(1 << 20, '\0');
  for (const MutableByteSpan buffer :
       {aligned.bytes(), std::as_writable_bytes(std::span(unaligned)).subspan(1)}) {
    for (const uint64_t size : {0, 1, 512, 4095, 4096, 4097, 8192, 300'000, 600'000}) {
      if (size > bytes.size()) continue;
      for (const uint64_t offset :
           {uint64_t{0}, uint64_t{1}, uint64_t{4095}, uint64_t{4096}, bytes.size() - size}) {
        if (offset + size > bytes.size()) continue;
        ASSERT_TRUE(file.ReadAt(offset, buffer.first(size)).ok()) << offset << "+" << size;
        ASSERT_TRUE(AsText(buffer.first(size)) == bytes.substr(offset, size))
            << offset << "+" << size;
      }
    }
  }
  std::byte one;
  EXPECT_TRUE(absl::IsOutOfRange(file.ReadAt(bytes.size(), {&one, 1})));
  EXPECT_TRUE(absl::IsOutOfRange(file.ReadAt(~uint64_t{0}, {&one, 1})));
}

TEST_F(DirectFileTest, ReadsAnyRangeOfFilesOfAnyLength) {
  for (const size_t size : {0, 1, 4095, 4096, 4097, 700'000, 700'416}) {
    const std::string bytes = TestBytes(size, 1);
    const auto file = DirectFileReader::Open(Make("/tmp", bytes));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE((*file)->direct()) << "this test wants a /tmp that takes O_DIRECT";
    ExpectReads(**file, bytes);
  }
}

TEST_F(DirectFileTest, KnowsWhatLiesInMemory) {
  for (const auto& [folder, in_memory] : {std::pair{"/tmp", false}, std::pair{"/dev/shm", true}}) {
    const std::string bytes = TestBytes(100'000, 1);
    const auto file = DirectFileReader::Open(Make(folder, bytes));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->in_memory(), in_memory) << folder;
    ExpectReads(**file, bytes);
  }
}

// Needs root: mounts a ramfs, which refuses O_DIRECT.
TEST_F(DirectFileTest, ReadsBufferedWhereTheFileSystemWantsThat) {
  char folder[] = "/tmp/kapsule-ramfs-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  ASSERT_EQ(mount("ramfs", folder, "ramfs", 0, nullptr), 0) << "this test mounts: run it as root";
  const std::string bytes = TestBytes(700'000, 2);
  const auto file = DirectFileReader::Open(Make(folder, bytes));
  EXPECT_TRUE(file.ok()) << file.status();
  if (file.ok()) {
    EXPECT_FALSE((*file)->direct());
    ExpectReads(**file, bytes);
  }
  EXPECT_EQ(umount2(folder, MNT_DETACH), 0);
  EXPECT_EQ(rmdir(folder), 0);
}

TEST_F(DirectFileTest, AdoptsABufferedDescriptor) {
  const std::string bytes = TestBytes(10'000, 2);
  auto fd = OpenFile(Make("/tmp", bytes), O_RDONLY);
  ASSERT_TRUE(fd.ok());
  const auto file = DirectFileReader::Adopt(*std::move(fd));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_FALSE((*file)->direct());
  ExpectReads(**file, bytes);
}

TEST_F(DirectFileTest, ReadsFilesInMemory) {
  const std::string bytes = TestBytes(700'000, 3);
  const auto file = DirectFileReader::Open(Make("/dev/shm", bytes));
  ASSERT_TRUE(file.ok()) << file.status();
  ExpectReads(**file, bytes);
}

TEST_F(DirectFileTest, SaysWhenTheFileHasBecomeShorter) {
  const std::string path = Make("/tmp", TestBytes(100'000, 4));
  const auto file = DirectFileReader::Open(path);
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(truncate(path.c_str(), 50'000), 0);
  std::string buffer(60'000, '\0');
  EXPECT_TRUE(absl::IsDataLoss((*file)->ReadAt(0, std::as_writable_bytes(std::span(buffer)))));
}

TEST_F(DirectFileTest, TakesRegularFilesOnly) {
  EXPECT_TRUE(absl::IsInvalidArgument(DirectFileReader::Open("/dev/null").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(DirectFileReader::Open("/tmp").status()));
  EXPECT_TRUE(absl::IsNotFound(DirectFileReader::Open("/tmp/kapsule-no-such-file").status()));
}

}  // namespace
}  // namespace kapsule::blob
