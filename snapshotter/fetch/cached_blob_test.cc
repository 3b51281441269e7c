#include "snapshotter/fetch/cached_blob.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <new>

#include "core/blob/test_layer.h"

namespace kapsule::fetch {
namespace {

namespace fs = std::filesystem;

class CachedBlobTest : public testing::Test {
 protected:
  CachedBlobTest() {
    char name[] = "/tmp/kapsule-blob-test-XXXXXX";
    path_ = mkdtemp(name);
    folder_ = CacheFolder::Open(path_, geteuid(), getegid(), absl::ZeroDuration()).value();
  }
  ~CachedBlobTest() override { EXPECT_TRUE(RemoveTree(path_).ok()); }

  absl::StatusOr<CachedBlob::Loaded> Load() {
    return CachedBlob::Load(*folder_, name_, std::make_shared<archive::PageCache>(1 << 20), fetch_);
  }
  ByteSpan BlockOf(const CachedBlob& blob, uint64_t block) {
    return AsBytes(layer_.bytes).subspan(blob.OffsetOf(block), blob.LengthOf(block));
  }
  // A blob with blocks 0 and 2, stored.
  void Prepare() {
    auto loaded = Load().value();
    BlockSet there = std::move(loaded.there);
    for (const uint64_t block : {0, 2}) {
      ASSERT_TRUE(loaded.blob->Put(block, BlockOf(*loaded.blob, block), fetch_).ok());
      there.Add(block);
    }
    ASSERT_TRUE(loaded.blob->Store(there).ok());
  }
  fs::path File() const { return path_ / name_.digest.hex(); }
  fs::path List() const { return path_ / (name_.digest.hex() + ".blocks"); }

  fs::path path_;
  std::unique_ptr<CacheFolder> folder_;
  const blob::TestLayer layer_ = blob::BuildTestLayer(blob::SampleFiles(), /*encrypted=*/true);
  const BlobName name_{oci::Digest::Of(AsBytes(layer_.bytes)), layer_.bytes.size(), layer_.ref};
  uint64_t fetched_ = 0;
  absl::Status broken_;
  const FetchBytes fetch_ = [this](uint64_t offset, MutableByteSpan out) {
    ++fetched_;
    const ByteSpan bytes = AsBytes(layer_.bytes).subspan(offset, out.size());
    std::copy(bytes.begin(), bytes.end(), out.begin());
    return broken_;
  };
};

TEST_F(CachedBlobTest, WhatWasStoredIsThereAgainAndFetchesNothing) {
  Prepare();
  fetched_ = 0;
  const auto loaded = Load();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(fetched_, 0u);
  EXPECT_EQ(loaded->there.count(), 2u);
  EXPECT_TRUE(loaded->there.Has(0) && loaded->there.Has(2));
  std::string buffer(1 << 20, '\0');
  const auto good = loaded->blob->Check(2, std::as_writable_bytes(std::span(buffer)), fetch_);
  EXPECT_TRUE(good.ok() && *good) << good.status();
}

TEST_F(CachedBlobTest, AListThatIsCutDamagedOrMissingIsNotBelieved) {
  Prepare();
  const std::string list = ReadFile(List(), 10'000).value();
  for (const std::string& bad : {std::string(), list.substr(0, list.size() - 1), list + "x",
                                 "X" + list.substr(1), std::string(10'000'000, 'x')}) {
    std::ofstream(List()) << bad;
    const auto loaded = Load();
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->there.count(), 0u);
  }
  fs::remove(List());
  EXPECT_EQ(Load()->there.count(), 0u);
}

TEST_F(CachedBlobTest, AnOlderListNamesNothingThatWasPunchedSince) {
  Prepare();
  const std::string list = ReadFile(List(), 10'000).value();
  auto loaded = Load().value();
  BlockSet left = std::move(loaded.there);
  left.Remove(0);
  ASSERT_TRUE(loaded.blob->Punch({{0, 1}}, left).ok());
  std::ofstream(List()) << list;
  const BlockSet there = Load()->there;
  EXPECT_FALSE(there.Has(0));
  EXPECT_TRUE(there.Has(2));
}

TEST_F(CachedBlobTest, ABlockWithAHoleInItIsNotThere) {
  Prepare();
  const UniqueFd file = OpenFile(File(), O_RDWR).value();
  ASSERT_EQ(
      fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (2 << 20) + 8192, 4096), 0);
  const BlockSet there = Load()->there;
  EXPECT_TRUE(there.Has(0));
  EXPECT_FALSE(there.Has(2));
}

TEST_F(CachedBlobTest, APageThatThereWasNoMemoryForKeepsNobodyWaiting) {
  Prepare();
  auto blob = Load().value().blob;
  const UniqueFd file = OpenFile(File(), O_RDWR).value();
  const uint64_t page = archive::LayoutOf(layer_.header).blocks.levels[0].offset;
  ASSERT_EQ(pwrite(file.get(), "damage", 6, static_cast<off_t>(page)), 6);
  ASSERT_EQ(fsync(file.get()), 0);
  std::string buffer(1 << 20, '\0');
  const MutableByteSpan block = std::as_writable_bytes(std::span(buffer));
  const FetchBytes no_memory = [](uint64_t, MutableByteSpan) -> absl::Status {
    throw std::bad_alloc();
  };
  EXPECT_THROW((void)blob->Check(2, block, no_memory), std::bad_alloc);
  const auto good = blob->Check(2, block, fetch_);
  EXPECT_TRUE(good.ok() && *good) << good.status();
}

TEST_F(CachedBlobTest, AListOfAnotherFileIsNotBelieved) {
  Prepare();
  fs::copy_file(File(), path_ / "copy");
  fs::rename(path_ / "copy", File());
  EXPECT_EQ(Load()->there.count(), 0u);
}

TEST_F(CachedBlobTest, ATruncatedFileIsMadeAnew) {
  Prepare();
  fs::resize_file(File(), 1000);
  const auto loaded = Load();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->there.count(), 0u);
  EXPECT_EQ(fs::file_size(File()), layer_.bytes.size());
}

TEST_F(CachedBlobTest, AFolderInPlaceOfTheFileIsReplaced) {
  fs::create_directory(File());
  EXPECT_TRUE(Load().ok());
  EXPECT_TRUE(fs::is_regular_file(File()));
}

TEST_F(CachedBlobTest, OtherBytesAreNotWritten) {
  auto loaded = Load().value();
  std::string bytes(AsText(BlockOf(*loaded.blob, 1)));
  bytes[77] ^= 1;
  EXPECT_TRUE(absl::IsDataLoss(loaded.blob->Put(1, AsBytes(bytes), fetch_)));
  const auto file = FileReader::Open(File()).value();
  std::string in_file(bytes.size(), 'x');
  ASSERT_TRUE(file->ReadAt(1 << 20, std::as_writable_bytes(std::span(in_file))).ok());
  EXPECT_EQ(in_file, std::string(bytes.size(), '\0'));
}

TEST_F(CachedBlobTest, AHeaderOfAnotherIndexIsRefused) {
  auto other = name_;
  other.index.root = oci::Digest::Of(AsBytes("other"));
  const auto loaded =
      CachedBlob::Load(*folder_, other, std::make_shared<archive::PageCache>(1 << 20), fetch_);
  EXPECT_TRUE(absl::IsDataLoss(loaded.status())) << loaded.status();
}

TEST_F(CachedBlobTest, WhatIsPunchedIsNoMoreListed) {
  Prepare();
  auto loaded = Load().value();
  const uint64_t before = loaded.blob->BytesOnDisk();
  BlockSet left = std::move(loaded.there);
  left.Remove(2);
  ASSERT_TRUE(loaded.blob->Punch({{2, 1}}, left).ok());
  EXPECT_LE(loaded.blob->BytesOnDisk() + (1 << 20), before);
  const auto again = Load().value();
  EXPECT_TRUE(again.there.Has(0));
  EXPECT_FALSE(again.there.Has(2));
}

}  // namespace
}  // namespace kapsule::fetch
