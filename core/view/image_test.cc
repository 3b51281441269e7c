#include "core/view/image.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/view/view.h"

namespace kapsule::view {
namespace {

using archive::Toc;

// Files of 1 to 4095 bytes, one in each 4 KiB of the tar.
Toc SmallFiles(size_t count) {
  Toc toc;
  for (size_t i = 0; i < count; ++i) {
    archive::TocEntry entry = archive::FileEntry(fmt::format("f{:06}", i), i * 31 % 4095 + 1);
    entry.offset = i * 4096;
    toc.entries.push_back(entry);
  }
  return toc;
}

std::unique_ptr<Image> Make(const Toc& toc, uint64_t tar_length) {
  auto image = Image::Make(toc, tar_length, true);
  EXPECT_TRUE(image.ok()) << image.status();
  return *std::move(image);
}

std::string Contents(const Image& image) {
  std::string bytes(image.stored_size(), '\0');
  EXPECT_EQ(pread(image.fd(), bytes.data(), bytes.size(), 0), ssize_t(bytes.size()));
  return bytes;
}

absl::StatusOr<std::unique_ptr<Image>> AdoptBytes(const std::string& bytes) {
  return Image::Adopt(SealedMemfd("image", AsBytes(bytes)).value());
}

TEST(ImageTest, ASuccessorReadsTheSameMetadata) {
  const Toc toc = SmallFiles(3000);
  const uint64_t tar_length = 3000 * 4096;
  const auto made = Make(toc, tar_length);
  const auto adopted = Image::Adopt(UniqueFd(dup(made->fd())));
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  const Image& image = **adopted;
  EXPECT_EQ(image.block_size(), 4096u);
  EXPECT_TRUE(image.seal_files());
  EXPECT_EQ(image.tar_length(), tar_length);
  const std::string expected = BuildMetadata(toc, tar_length, {.seal_files = true})->bytes;
  ASSERT_EQ(image.metadata_size(), expected.size());
  EXPECT_EQ(image.size(), expected.size() + tar_length);
  for (const uint64_t offset : {uint64_t{0}, uint64_t{1000}, uint64_t{65536}, expected.size() - 1})
    for (const uint64_t size : {1, 100, 4096, 100'000}) {
      std::string got(std::min(size, expected.size() - offset), '#');
      ASSERT_TRUE(image.ReadMetadata(offset, std::as_writable_bytes(std::span(got))).ok());
      EXPECT_TRUE(got == expected.substr(offset, got.size())) << offset << "+" << size;
    }
  std::byte two[2];
  EXPECT_TRUE(absl::IsOutOfRange(image.ReadMetadata(expected.size() - 1, two)));
  EXPECT_TRUE(absl::IsOutOfRange(image.ReadMetadata(UINT64_MAX, two)));
}

TEST(ImageTest, ZerosAtTheEndOfTheMetadataAreNotStored) {
  const auto image = Make(SmallFiles(1), 4096);
  EXPECT_EQ(image->metadata_size(), 65536u);
  EXPECT_LT(image->stored_size(), 4096u);
}

// One file end, those of one read, one more, and many.
TEST(ImageTest, OnlyTheGapsBehindFilesAreCleared) {
  for (const size_t count : {0, 1, 512, 513, 5000}) {
    const Toc toc = SmallFiles(count);
    const uint64_t tar_length = (count + 1) * 4096;
    const auto image = Make(toc, tar_length);
    std::string expected(tar_length, '#');
    for (const archive::TocEntry& entry : toc.entries)
      std::fill(expected.begin() + (entry.offset + entry.size),
                expected.begin() + AlignUp(entry.offset + entry.size, 4096), '\0');
    for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{4095}, tar_length / 2,
                                  tar_length - 4096, tar_length - 1})
      for (const uint64_t size : {uint64_t{1}, uint64_t{4096}, uint64_t{9000}, tar_length}) {
        std::string got(std::min(size, tar_length - offset), '#');
        ASSERT_TRUE(image->ClearGaps(offset, std::as_writable_bytes(std::span(got))).ok());
        ASSERT_TRUE(got == expected.substr(offset, got.size()))
            << count << " files, " << offset << "+" << size;
      }
  }
}

TEST(ImageTest, BlocksOf512BytesEndWhereTheyEnd) {
  Toc toc = SmallFiles(2);
  toc.entries[0].size = 100;
  toc.entries[1].offset = 1024;
  toc.entries[1].size = 1000;
  const auto image = Make(toc, 8192);
  ASSERT_EQ(image->block_size(), 512u);
  std::string got(8192, '#');
  ASSERT_TRUE(image->ClearGaps(0, std::as_writable_bytes(std::span(got))).ok());
  EXPECT_TRUE(got == std::string(100, '#') + std::string(412, '\0') + std::string(1512, '#') +
                         std::string(24, '\0') + std::string(6144, '#'));
}

TEST(ImageTest, AFileThatCouldStillChangeIsRefused) {
  const std::string bytes = Contents(*Make(SmallFiles(1), 4096));
  for (const int seals : {0, F_SEAL_WRITE, F_SEAL_WRITE | F_SEAL_SHRINK, F_SEAL_WRITE | F_SEAL_GROW,
                          F_SEAL_GROW | F_SEAL_SHRINK}) {
    UniqueFd fd(memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_TRUE(WriteAll(fd.get(), AsBytes(bytes)).ok());
    ASSERT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
    EXPECT_TRUE(absl::IsInvalidArgument(Image::Adopt(std::move(fd)).status())) << seals;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(
      Image::Adopt(UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC))).status()));
  EXPECT_TRUE(AdoptBytes(bytes).ok());
}

TEST(ImageTest, EveryWrongFieldIsRefused) {
  const std::string bytes = Contents(*Make(SmallFiles(600), 600 * 4096));
  const auto with = [&bytes]<typename T>(size_t at, T value) {
    std::string changed = bytes;
    StoreLe(changed.data() + at, value);
    return AdoptBytes(changed).status();
  };
  EXPECT_TRUE(absl::IsUnimplemented(with(8, uint32_t{2})));
  for (const uint32_t block : {0u, 1024u, 8192u, ~0u})
    EXPECT_TRUE(absl::IsInvalidArgument(with(12, block))) << block;
  for (const size_t field : {16, 24, 32, 40, 48})
    for (const uint64_t value : {uint64_t{1}, uint64_t{1} << 44, UINT64_MAX, UINT64_MAX - 65535})
      EXPECT_TRUE(absl::IsInvalidArgument(with(field, value))) << field << " " << value;
  EXPECT_TRUE(absl::IsInvalidArgument(with(16, uint64_t{0})));
  EXPECT_TRUE(absl::IsInvalidArgument(with(32, uint64_t{4096}))) << "file ends beyond the tar";
  EXPECT_TRUE(absl::IsInvalidArgument(with(56, uint32_t{8})));
  EXPECT_TRUE(absl::IsInvalidArgument(with(60, uint32_t{3})));
  for (const size_t at : {bytes.size() - 8, bytes.size() - 8 * 80, bytes.size() - 8 * 600})
    for (const uint64_t end : {uint64_t{0}, uint64_t{4096}, UINT64_MAX})
      EXPECT_TRUE(absl::IsInvalidArgument(with(at, end))) << at << " " << end;
  for (const size_t length : {size_t{0}, size_t{63}, size_t{64}, bytes.size() - 1})
    EXPECT_TRUE(absl::IsInvalidArgument(AdoptBytes(bytes.substr(0, length)).status())) << length;
  EXPECT_TRUE(absl::IsInvalidArgument(AdoptBytes(bytes + '\0').status()));
  EXPECT_TRUE(absl::IsInvalidArgument(with(0, uint8_t{'k'})));
}

}  // namespace
}  // namespace kapsule::view
