#include "core/archive/index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/archive/index_reader.h"
#include "core/archive/index_writer.h"

namespace kapsule::archive {
namespace {

using testing::HasSubstr;

IndexHeader SampleHeader(uint64_t covered_length = 10 << 20) {
  IndexHeader header;
  header.encrypted = true;
  header.covered_length = covered_length;
  header.tar_length = covered_length - 65536;
  header.toc_length = 65536;
  header.toc_digest = oci::Digest::Of(AsBytes("toc"));
  header.salt[3] = std::byte{7};
  header.commitment[31] = std::byte{9};
  return header;
}

oci::Digest BlockAt(uint64_t n) { return oci::Digest::Of(AsBytes(fmt::format("block {}", n))); }
Tag TagAt(uint64_t n) {
  Tag tag{};
  StoreLe(tag.data(), n * 0x9E3779B97F4A7C15);
  return tag;
}

// A covered range of zeros, not stored, and the index behind it.
class SparseBlob final : public ReaderAt {
 public:
  SparseBlob(const IndexHeader& header, size_t memory_limit = 1 << 20)
      : covered_(header.covered_length) {
    const IndexLayout layout = LayoutOf(header);
    IndexWriter writer("/tmp", memory_limit);
    for (uint64_t n = 0; n < layout.blocks.entries; ++n) Must(writer.AppendBlock(BlockAt(n)));
    for (uint64_t n = 0; n < layout.tags.entries; ++n) Must(writer.AppendTag(TagAt(n)));
    const auto finished = writer.Finish(header, [this](ByteSpan bytes) {
      index += AsText(bytes);
      return absl::OkStatus();
    });
    Must(finished.status());
    this->header = *finished;
    EXPECT_EQ(size(), layout.blob_size);
  }
  uint64_t size() const override { return covered_ + index.size(); }
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    ++reads;
    EXPECT_GE(offset, covered_);
    return MemoryReader(AsBytes(index)).ReadAt(offset - covered_, out);
  }
  oci::IndexRef ref() const {
    return {1, size() - kHeaderSize, kHeaderSize, oci::Digest::Of(header.Encode())};
  }
  static void Must(const absl::Status& status) { ASSERT_TRUE(status.ok()) << status; }

  std::string index;
  IndexHeader header;
  mutable std::atomic<int> reads{0};

 private:
  const uint64_t covered_;
};

void ExpectAllEntries(const SparseBlob& blob, size_t cache_bytes = 4 << 20) {
  const IndexReader reader(blob, blob.header, cache_bytes);
  std::vector<oci::Digest> digests(reader.layout().blocks.entries);
  ASSERT_TRUE(reader.ReadBlockDigests(0, digests).ok());
  for (size_t n = 0; n < digests.size(); ++n) ASSERT_EQ(digests[n], BlockAt(n)) << n;
  for (uint64_t n = 0; n < reader.layout().tags.entries; n += 1021) {
    Tag tag;
    ASSERT_TRUE(reader.ReadTags(n, {&tag, 1}).ok());
    ASSERT_EQ(tag, TagAt(n)) << n;
  }
  EXPECT_LE(reader.cached_bytes(), std::max<size_t>(cache_bytes, kPageSize + 1024));
}

TEST(IndexHeaderTest, DecodesWhatItEncodes) {
  const IndexHeader header = SampleHeader();
  const auto decoded = IndexHeader::Decode(header.Encode());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(*decoded, header);
}

TEST(IndexHeaderTest, HasTheBytesOfTheDocument) {
  const auto bytes = SampleHeader().Encode();
  EXPECT_EQ(AsText(ByteSpan(bytes).first(8)), "KAPSULE\n");
  EXPECT_EQ(LoadLe<uint32_t>(&bytes[8]), 1u);
  EXPECT_EQ(LoadLe<uint32_t>(&bytes[12]), 1u);
  EXPECT_EQ(LoadLe<uint32_t>(&bytes[16]), 65536u);
  EXPECT_EQ(LoadLe<uint32_t>(&bytes[20]), 1048576u);
  EXPECT_EQ(LoadLe<uint64_t>(&bytes[24]), 10u << 20);
  EXPECT_EQ(LoadLe<uint64_t>(&bytes[32]), (10u << 20) - 65536);
  EXPECT_EQ(LoadLe<uint64_t>(&bytes[40]), 65536u);
  EXPECT_EQ(bytes[83], std::byte{7});
  EXPECT_EQ(bytes[207], std::byte{9});
}

TEST(IndexHeaderTest, NamesTheNumberThatIsOutOfBounds) {
  struct Case {
    std::string field;
    void (*spoil)(IndexHeader&);
  };
  const std::vector<Case> cases = {
      {"chunk size", [](IndexHeader& h) { h.chunk_size = 2048; }},
      {"chunk size", [](IndexHeader& h) { h.chunk_size = 65537; }},
      {"chunk size", [](IndexHeader& h) { h.chunk_size = 2 << 20, h.block_size = 2 << 20; }},
      {"block size", [](IndexHeader& h) { h.block_size = 32768; }},
      {"block size", [](IndexHeader& h) { h.block_size = 128 << 20; }},
      {"block size", [](IndexHeader& h) { h.block_size = 0; }},
      {"covered length", [](IndexHeader& h) { h.covered_length = 0; }},
      {"covered length", [](IndexHeader& h) { h.covered_length += 512; }},
      {"covered length", [](IndexHeader& h) { h.covered_length = (1ull << 43) + 65536; }},
      {"tar length", [](IndexHeader& h) { h.tar_length = 512; }},
      {"tar length", [](IndexHeader& h) { h.tar_length += 1; }},
      {"tar length", [](IndexHeader& h) { h.tar_length = h.covered_length + 512; }},
      {"toc length", [](IndexHeader& h) { h.toc_length += 1; }},
      {"toc length", [](IndexHeader& h) { h.toc_length = ~uint64_t{0}; }},
      {"toc length",
       [](IndexHeader& h) {
         h.covered_length = 128 << 20;
         h.tar_length = 1024;
         h.toc_length = (64 << 20) + 1;
       }},
      {"salt", [](IndexHeader& h) { h.encrypted = false, h.commitment = {}; }},
      {"commitment", [](IndexHeader& h) { h.encrypted = false, h.salt = {}; }},
  };
  for (const Case& c : cases) {
    IndexHeader header = SampleHeader();
    c.spoil(header);
    const auto decoded = IndexHeader::Decode(header.Encode());
    EXPECT_TRUE(absl::IsInvalidArgument(decoded.status())) << c.field;
    EXPECT_THAT(Message(decoded.status()), HasSubstr(c.field));
  }
}

TEST(IndexHeaderTest, TakesTheNumbersAtTheirBounds) {
  IndexHeader header = SampleHeader();
  header.chunk_size = 4096;
  header.block_size = 4096;
  header.covered_length = uint64_t{1} << 43;
  header.tar_length = 1024;
  header.toc_length = 64 << 20;
  EXPECT_TRUE(IndexHeader::Decode(header.Encode()).ok());
  const IndexLayout layout = LayoutOf(header);
  EXPECT_EQ(layout.tags.levels.size(), 3u);
  EXPECT_GT(layout.blob_size, header.covered_length);
}

TEST(IndexHeaderTest, RefusesOtherVersionsFlagsMagicAndReservedBytes) {
  const auto good = SampleHeader().Encode();
  for (size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= std::byte{0x40};
    const auto status = IndexHeader::Decode(bad).status();
    // Another covered length may be a good one.
    if (i < 8 || (i >= 12 && i < 24) || (i >= 32 && i < 48) || i >= 208) {
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << i << " " << status;
    } else if (i < 12) {
      EXPECT_TRUE(absl::IsUnimplemented(status)) << i << " " << status;
    } else if (i >= 48) {
      EXPECT_TRUE(status.ok()) << i << " " << status;  // the root is what covers these
    }
  }
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_TRUE(absl::IsInvalidArgument(IndexHeader::Decode(ByteSpan(good).first(n)).status()));
}

TEST(IndexLayoutTest, FollowsTheOrderOfTheDocument) {
  // 1 TiB: 2^20 blocks (32 MiB of digests, 512 pages), 2^24 chunks (256 MiB of
  // tags, 4,096 pages).
  const IndexLayout layout = LayoutOf(SampleHeader(uint64_t{1} << 40));
  uint64_t at = uint64_t{1} << 40;
  const auto expect_level = [&at](const Table& table, size_t level, uint64_t length) {
    ASSERT_LT(level, table.levels.size());
    EXPECT_EQ(table.levels[level].offset, at);
    EXPECT_EQ(table.levels[level].length, length);
    at += length;
  };
  expect_level(layout.blocks, 0, 32 << 20);
  expect_level(layout.tags, 0, 256 << 20);
  expect_level(layout.blocks, 1, 512 * 32);
  expect_level(layout.tags, 1, 4096 * 32);
  expect_level(layout.tags, 2, 2 * 32);
  EXPECT_EQ(layout.blocks.levels.size(), 2u);
  EXPECT_EQ(layout.tags.levels.size(), 3u);
  EXPECT_EQ(layout.header_offset, at);
}

TEST(IndexTest, ReadsBackEveryEntryAtSizesAroundThePage) {
  // 4,096 tags and 2,048 digests fill a page.
  for (const uint64_t chunks : {1, 2, 4095, 4096, 4097, 12289}) {
    IndexHeader header = SampleHeader(chunks * 65536);
    header.tar_length = 1024;
    header.toc_length = 0;
    header.block_size = 65536;
    ExpectAllEntries(SparseBlob(header));
  }
}

TEST(IndexTest, SpooledAndInMemoryIndexesAreTheSame) {
  IndexHeader header = SampleHeader(uint64_t{20'000} << 16);
  header.block_size = 65536;
  const SparseBlob in_memory(header, 100 << 20), spooled(header, 1);
  EXPECT_EQ(in_memory.index, spooled.index);
  ExpectAllEntries(spooled);
}

TEST(IndexTest, WorksWithTheSmallestCache) {
  IndexHeader header = SampleHeader(uint64_t{20'000} << 16);
  header.block_size = 65536;
  ExpectAllEntries(SparseBlob(header), 0);
}

TEST(IndexTest, PlainLayersHaveNoTags) {
  IndexHeader header = SampleHeader();
  header.encrypted = false;
  header.salt = {};
  header.commitment = {};
  const SparseBlob blob(header);
  EXPECT_EQ(blob.header.tag_root, oci::Digest());
  Tag tag;
  EXPECT_TRUE(absl::IsOutOfRange(IndexReader(blob, blob.header).ReadTags(0, {&tag, 1})));
}

TEST(IndexTest, WriterRefusesANumberOfEntriesThatTheHeaderDoesNotHave) {
  IndexWriter writer("/tmp");
  for (int n = 0; n < 9; ++n) ASSERT_TRUE(writer.AppendBlock(BlockAt(n)).ok());
  const auto sink = [](ByteSpan) { return absl::OkStatus(); };
  EXPECT_TRUE(absl::IsInvalidArgument(writer.Finish(SampleHeader(), sink).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(writer.Finish(IndexHeader(), sink).status()));
}

TEST(IndexTest, WriterSaysWhereItCannotSpool) {
  IndexWriter writer("/nowhere/at/all", 1);
  absl::Status status;
  for (int n = 0; n < 5000 && status.ok(); ++n) status = writer.AppendBlock(BlockAt(n));
  EXPECT_THAT(Message(status), HasSubstr("/nowhere/at/all"));
}

TEST(IndexTest, OpeningReadsNothingButTheHeader) {
  const SparseBlob blob(SampleHeader(uint64_t{1} << 34));
  ASSERT_TRUE(ReadHeader(blob, blob.ref()).ok());
  const IndexReader reader(blob, blob.header);
  EXPECT_EQ(blob.reads, 1);
  Tag tag;
  ASSERT_TRUE(reader.ReadTags(0, {&tag, 1}).ok());
  ASSERT_TRUE(reader.ReadTags(1, {&tag, 1}).ok());
  EXPECT_EQ(blob.reads, 3);  // one page of tags and the one above it
}

TEST(IndexTest, HeaderMustBeTheOneOfTheRootAtTheEndOfTheBlob) {
  SparseBlob blob(SampleHeader());
  const oci::IndexRef good = blob.ref();
  const auto expect_loss = [&](oci::IndexRef ref) {
    EXPECT_TRUE(absl::IsDataLoss(ReadHeader(blob, ref).status()));
  };
  expect_loss({1, good.offset - 1, good.length, good.root});
  expect_loss({1, good.offset, good.length + 1, good.root});
  expect_loss({1, ~uint64_t{0}, good.length, good.root});
  expect_loss({1, good.offset, good.length, BlockAt(1)});
  blob.index.insert(0, 512, 'x');  // a longer blob than the header's numbers say
  expect_loss(blob.ref());
}

TEST(IndexTest, FindsEveryFlippedByteAndNamesThePage) {
  IndexHeader header = SampleHeader(uint64_t{9000} << 16);
  header.block_size = 65536;
  SparseBlob blob(header);
  const IndexLayout layout = LayoutOf(header);
  ASSERT_EQ(layout.tags.levels.size(), 2u);
  // One byte of each level of both tables, in its last page.
  for (const Table* table : {&layout.blocks, &layout.tags}) {
    for (size_t level = 0; level < table->levels.size(); ++level) {
      const Table::Level& where = table->levels[level];
      char& byte = blob.index[where.offset + where.length - 1 - header.covered_length];
      byte = static_cast<char>(byte ^ 1);
      const IndexReader reader(blob, blob.header);
      Tag tag;
      oci::Digest digest;
      const absl::Status status = table == &layout.tags
                                      ? reader.ReadTags(table->entries - 1, {&tag, 1})
                                      : reader.ReadBlockDigests(table->entries - 1, {&digest, 1});
      EXPECT_TRUE(absl::IsDataLoss(status)) << status;
      EXPECT_THAT(Message(status), HasSubstr(fmt::format("of level {} of the", level)));
      byte = static_cast<char>(byte ^ 1);
    }
  }
  ExpectAllEntries(blob);
}

TEST(IndexTest, PagesCannotStandInForEachOther) {
  IndexHeader header = SampleHeader(uint64_t{9000} << 16);
  SparseBlob blob(header);
  const uint64_t tags = LayoutOf(header).tags.levels[0].offset - header.covered_length;
  const std::string first = blob.index.substr(tags, kPageSize);
  blob.index.replace(tags, kPageSize, blob.index, tags + kPageSize, kPageSize);
  blob.index.replace(tags + kPageSize, kPageSize, first);
  Tag tag;
  EXPECT_TRUE(absl::IsDataLoss(IndexReader(blob, blob.header).ReadTags(0, {&tag, 1})));
}

TEST(IndexTest, ReadersShareOneCacheAndTakeTheirPagesAlong) {
  const SparseBlob first(SampleHeader(uint64_t{10'000} << 16));
  const SparseBlob second(SampleHeader(uint64_t{5'000} << 16));
  const auto cache = std::make_shared<PageCache>(1 << 20);
  const IndexReader kept(first, first.header, cache, 1);
  Tag tag;
  ASSERT_TRUE(kept.ReadTags(3, {&tag, 1}).ok());
  const size_t before = cache->bytes();
  {
    const IndexReader gone(second, second.header, cache, 2);
    ASSERT_TRUE(gone.ReadTags(4'999, {&tag, 1}).ok());
    EXPECT_GT(cache->bytes(), before);
  }
  EXPECT_EQ(cache->bytes(), before);
  const int reads = first.reads;
  ASSERT_TRUE(kept.ReadTags(3, {&tag, 1}).ok());
  EXPECT_EQ(tag, TagAt(3));
  EXPECT_EQ(first.reads, reads);
}

TEST(IndexTest, ThreadsReadTogetherThroughASmallCache) {
  const SparseBlob blob(SampleHeader(uint64_t{40'000} << 16));
  const IndexReader reader(blob, blob.header, 2 * kPageSize);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t)
    threads.emplace_back([&reader, t] {
      for (uint64_t i = 0; i < 3000; ++i) {
        const uint64_t n = (i * 7919 + t * 104729) % 39'990;
        std::array<Tag, 10> tags;
        ASSERT_TRUE(reader.ReadTags(n, tags).ok());
        for (size_t k = 0; k < tags.size(); ++k) ASSERT_EQ(tags[k], TagAt(n + k));
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace kapsule::archive
