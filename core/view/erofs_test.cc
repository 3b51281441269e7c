#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/blob/test_layer.h"
#include "core/view/metadata_walk.h"
#include "core/view/view.h"

namespace kapsule::view {
namespace {

using archive::DirectoryEntry;
using archive::FileEntry;
using archive::HardLinkEntry;
using archive::SymlinkEntry;
using archive::Toc;
using archive::TocEntry;

constexpr uint64_t kTarLength = 1 << 20;

TocEntry FileAt(std::string path, uint64_t offset, uint64_t size) {
  TocEntry entry = FileEntry(std::move(path), size);
  entry.offset = offset;
  return entry;
}

Metadata Build(const Toc& toc, bool seal = false, uint64_t tar_length = kTarLength) {
  EXPECT_TRUE(archive::CheckToc(toc, tar_length).ok()) << archive::CheckToc(toc, tar_length);
  const auto metadata = BuildMetadata(toc, tar_length, {seal});
  EXPECT_TRUE(metadata.ok()) << metadata.status();
  return *metadata;
}

WalkResult Walk(const Metadata& metadata, uint64_t tar_length = kTarLength) {
  const auto result = WalkMetadata(metadata.bytes, metadata.bytes.size() + tar_length);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.value_or(WalkResult());
}

TEST(ErofsTest, AnEmptyTocIsAnEmptyDirectory) {
  const Metadata metadata = Build({});
  const WalkResult walked = Walk(metadata);
  EXPECT_EQ(walked.directories, 1u);
  EXPECT_EQ(walked.names, 0u);
  EXPECT_EQ(metadata.bytes.size(), 65536u);
}

TEST(ErofsTest, TakesLargeBlocksWhereEveryFileLetsIt) {
  EXPECT_EQ(Build({{FileAt("a", 4096, 5), FileAt("b", 65536, 5)}}).block_size, 4096u);
  EXPECT_EQ(Build({{FileAt("a", 4096, 5), FileAt("b", 8192 + 512, 5)}}).block_size, 512u);
  EXPECT_EQ(Build({{FileAt("a", 512, 0)}}).block_size, 4096u) << "an empty file has no place";
}

TEST(ErofsTest, NamesAroundTheDotsAreInOrder) {
  Toc toc{{FileAt("!", 0, 0), FileAt("+", 0, 0), FileAt("--", 0, 0), FileAt(".-", 0, 0),
           FileAt("..-", 0, 0), FileAt("...", 0, 0), FileAt(".a", 0, 0), FileAt("\xff", 0, 0)}};
  EXPECT_EQ(Walk(Build(toc)).names, toc.entries.size());
}

TEST(ErofsTest, SiblingsThatSortAroundASubdirectory) {
  const Toc toc{
      {DirectoryEntry("a"), FileAt("a.b", 0, 0), FileAt("a/b", 0, 0), FileAt("a0", 0, 0)}};
  const WalkResult walked = Walk(Build(toc));
  EXPECT_EQ(walked.names, 4u);
  EXPECT_EQ(walked.directories, 2u);
}

TEST(ErofsTest, HardLinksAreOneInode) {
  const Toc toc{
      {DirectoryEntry(""), HardLinkEntry("a", "m"), FileAt("m", 4096, 9), HardLinkEntry("z", "m")}};
  const WalkResult walked = Walk(Build(toc));
  EXPECT_EQ(walked.files, 1u);
  EXPECT_EQ(walked.names, 3u);
}

TEST(ErofsTest, LongNamesFitBlocksOfBothSizes) {
  for (const uint64_t offset : {512, 4096}) {
    Toc toc;
    for (char c = 'a'; c <= 'z'; ++c) toc.entries.push_back(FileAt(std::string(255, c), 0, 0));
    toc.entries.push_back(FileAt("zz", offset, 1));
    archive::SortToc(toc);
    const Metadata metadata = Build(toc);
    EXPECT_EQ(metadata.block_size, offset);
    EXPECT_EQ(Walk(metadata).names, 27u);
  }
}

TEST(ErofsTest, DirectoriesOfEverySizeAroundABlock) {
  Toc toc;
  for (int n = 0; n < 700; ++n) {
    toc.entries.push_back(FileAt(fmt::format("{:04}", n), 0, 0));
    ASSERT_EQ(Walk(Build(toc)).names, toc.entries.size());
  }
}

TEST(ErofsTest, AHundredThousandFilesInOneDirectory) {
  Toc toc{{DirectoryEntry("d")}};
  uint64_t names = 1;
  for (int n = 0; n < 100'000; ++n) {
    toc.entries.push_back(FileAt(fmt::format("d/file-{:06}", n), 0, 0));
    names += 11;
  }
  const Metadata metadata = Build(toc);
  EXPECT_EQ(Walk(metadata).files, 100'000u);
  EXPECT_LE(metadata.bytes.size(), 200 * toc.entries.size() + names);
}

// Data of `size` bytes for one inode: the target of a link.
Toc LinkOf(size_t size, uint64_t offset_of_file) {
  return {{FileAt("f", offset_of_file, 1), SymlinkEntry("s", std::string(size, 't'))}};
}

TEST(ErofsTest, SymlinksOfEveryLength) {
  for (const uint64_t block_size : {512, 4096})
    for (size_t size = 1; size <= archive::kMaxPath; ++size) {
      const Metadata metadata = Build(LinkOf(size, block_size));
      ASSERT_EQ(metadata.block_size, block_size);
      ASSERT_EQ(Walk(metadata).symlinks, 1u) << size;
    }
}

TEST(ErofsTest, DirectoriesOfEverySizeAroundASmallBlock) {
  for (size_t length = 1; length <= 255; ++length) {
    Toc toc{{FileAt("!", 512, 1)}};
    for (int n = 0; n < 9; ++n)
      toc.entries.push_back(FileAt(std::to_string(n) + std::string(length - 1, 'n'), 0, 0));
    const Metadata metadata = Build(toc);
    ASSERT_EQ(metadata.block_size, 512u);
    ASSERT_EQ(Walk(metadata).names, 10u);
  }
}

TEST(ErofsTest, AnEntryOfAnyTypeTakesNoMoreThan200BytesAndItsName) {
  constexpr int kEntries = 50'000;
  const auto name = [](int n) { return fmt::format("{:06}", n); };
  Toc links, empty, nested;
  for (int n = 0; n < kEntries; ++n) {
    links.entries.push_back(SymlinkEntry(name(n), "target/" + name(n)));
    empty.entries.push_back(DirectoryEntry(name(n)));
    if (n % 2 != 0) continue;
    nested.entries.push_back(DirectoryEntry(name(n)));
    nested.entries.push_back(DirectoryEntry(name(n) + "/directory"));
  }
  for (const Toc* toc : {&links, &empty, &nested}) {
    const Metadata metadata = Build(*toc);
    EXPECT_EQ(Walk(metadata).names, toc->entries.size());
    uint64_t names = 65536;  // the end is padded to this
    for (const TocEntry& entry : toc->entries)
      names += archive::NameOf(entry.path).size() + entry.link_target.size();
    EXPECT_LE(metadata.bytes.size(), 200 * toc->entries.size() + names);
  }
}

TEST(ErofsTest, SealedFilesBelongToNobodyAndKeepOnlyTheirXBits) {
  Toc toc{{DirectoryEntry(""), FileAt("f", 4096, 1), SymlinkEntry("s", "f")}};
  for (TocEntry& entry : toc.entries) {
    entry.uid = 7;
    entry.gid = 8;
  }
  toc.entries[1].mode = 06751;
  struct Owner {
    uint32_t mode, uid, gid;
  };
  // Behind the root's inode come its entries: ".", "..", "f", "s".
  const auto owner = [](const Metadata& metadata, int entry) {
    const char* const entries = metadata.bytes.data() + 1152 + 64;
    const char* at =
        metadata.bytes.data() + 32 * LoadLe<uint64_t>(entries + (entry ? entry + 1 : 0) * 12);
    return std::vector<uint32_t>{LoadLe<uint16_t>(at + 4), LoadLe<uint32_t>(at + 24),
                                 LoadLe<uint32_t>(at + 28)};
  };
  using testing::ElementsAre;
  EXPECT_THAT(owner(Build(toc, true), 0), ElementsAre(0040755, 7, 8));
  EXPECT_THAT(owner(Build(toc, true), 1), ElementsAre(0100555, 0xFFFFFFFF, 0xFFFFFFFF));
  EXPECT_THAT(owner(Build(toc, true), 2), ElementsAre(0120777, 7, 8));
  EXPECT_THAT(owner(Build(toc, false), 1), ElementsAre(0106751, 7, 8));
}

TEST(ErofsTest, IsDeterministic) {
  const blob::TestLayer layer = blob::BuildTestLayer(blob::SampleFiles(), false);
  EXPECT_EQ(Build(layer.toc, true, layer.header.tar_length).bytes,
            Build(layer.toc, true, layer.header.tar_length).bytes);
}

TEST(ErofsTest, RefusesMoreThan32BitsOfBlocks) {
  // 2 TiB of 512-byte blocks, 16 TiB of 4,096-byte ones.
  const Toc small{{FileAt("f", 512, 1)}}, large{{FileAt("f", 4096, 1)}};
  const auto code = [](const Toc& toc, uint64_t tar_length) {
    return BuildMetadata(toc, tar_length, {}).status().code();
  };
  EXPECT_EQ(code(small, (1ull << 41) - (1 << 20)), absl::StatusCode::kOk);
  EXPECT_EQ(code(small, 1ull << 41), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code(large, (1ull << 44) - (1 << 20)), absl::StatusCode::kOk);
  EXPECT_EQ(code(large, 1ull << 44), absl::StatusCode::kResourceExhausted);
}

TEST(ErofsTest, RefusesMetadataBeyondTheLimit) {
  Toc toc;  // each of the links takes an inode and a block
  while (toc.entries.size() < 32'000)
    toc.entries.push_back(
        SymlinkEntry(fmt::format("{:06}", toc.entries.size()), std::string(4095, 't')));
  const auto built = BuildMetadata(toc, kTarLength, {});
  ASSERT_TRUE(built.ok()) << built.status();
  EXPECT_LE(built->bytes.size(), kMaxMetadata);
  const uint64_t left = kMaxMetadata - built->bytes.size() + 65536;  // of which some is padding
  for (uint64_t n = 0; n <= left / 4096; ++n)
    toc.entries.push_back(SymlinkEntry(fmt::format("z{:06}", n), std::string(4095, 't')));
  const absl::Status refused = BuildMetadata(toc, kTarLength, {}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(Message(refused), testing::HasSubstr("more than 134217728"));
}

}  // namespace
}  // namespace kapsule::view
