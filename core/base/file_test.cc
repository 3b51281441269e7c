#include "core/base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

namespace kapsule {
namespace {

namespace fs = std::filesystem;

class FileTest : public ::testing::Test {
 protected:
  FileTest() {
    std::string name = (fs::temp_directory_path() / "kapsule-file-XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~FileTest() override { fs::remove_all(folder_); }
  fs::path folder_;
};

TEST_F(FileTest, AtomicWriteReplacesAndLeavesNothingElse) {
  const fs::path path = folder_ / "a";
  ASSERT_TRUE(WriteFileAtomic(path, AsBytes("one"), 0600).ok());
  ASSERT_TRUE(WriteFileAtomic(path, AsBytes("two"), 0640).ok());
  EXPECT_EQ(ReadFile(path, 10).value(), "two");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
  EXPECT_EQ(fs::status(path).permissions(), fs::perms(0640));
}

TEST_F(FileTest, AtomicWriteIntoAMissingFolderNamesIt) {
  const absl::Status status = WriteFileAtomic(folder_ / "no/a", AsBytes("x"), 0600);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(Message(status).find("no/"), std::string::npos);
}

TEST_F(FileTest, ReadFileRefusesLargeFilesAndFolders) {
  ASSERT_TRUE(WriteFileAtomic(folder_ / "a", AsBytes("12345"), 0600).ok());
  EXPECT_EQ(ReadFile(folder_ / "a", 4).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadFile(folder_, 4).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadFile(folder_ / "b", 4).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(FileTest, ReadAtIsNeverShort) {
  ASSERT_TRUE(WriteFileAtomic(folder_ / "a", AsBytes("12345"), 0600).ok());
  auto file = FileReader::Open(folder_ / "a").value();
  std::array<std::byte, 3> out;
  ASSERT_TRUE(file->ReadAt(2, out).ok());
  EXPECT_EQ(AsText(out), "345");
  EXPECT_EQ(file->ReadAt(3, out).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(file->ReadAt(UINT64_MAX, out).code(), absl::StatusCode::kOutOfRange);
  ASSERT_EQ(truncate((folder_ / "a").c_str(), 3), 0);
  EXPECT_EQ(file->ReadAt(2, out).code(), absl::StatusCode::kDataLoss);
}

TEST_F(FileTest, OnlySealedMemfdsOfBoundedSizeAreRead) {
  UniqueFd sealed = SealedMemfd("t", AsBytes("hello")).value();
  EXPECT_EQ(ReadSealedMemfd(sealed.get(), 5).value(), "hello");
  EXPECT_FALSE(ReadSealedMemfd(sealed.get(), 4).ok());
  UniqueFd open(memfd_create("t", MFD_ALLOW_SEALING));
  EXPECT_FALSE(ReadSealedMemfd(open.get(), 5).ok());
  UniqueFd file = OpenFile(folder_ / "f", O_CREAT | O_RDWR, 0600).value();
  EXPECT_FALSE(ReadSealedMemfd(file.get(), 5).ok());
}

}  // namespace
}  // namespace kapsule
