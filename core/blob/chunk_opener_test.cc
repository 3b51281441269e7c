#include "core/blob/chunk_opener.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/blob/test_layer.h"

namespace kapsule::blob {
namespace {

using testing::HasSubstr;

class ChunkOpenerTest : public testing::TestWithParam<uint32_t> {
 protected:
  ChunkOpenerTest()
      : layer_(BuildTestLayer({MakeTestFile("weights", TestBytes(3 << 20, 7))}, true, GetParam())),
        opener_(std::move(*ChunkOpener::Make(layer_.key, layer_.header))) {
    crypt::ChunkMac mac = *crypt::ChunkMac::Create(layer_.key, layer_.header.salt, GetParam(),
                                                   layer_.header.covered_length);
    for (uint64_t n = 0; n * GetParam() < layer_.header.covered_length; ++n)
      tags_.push_back(*mac.Tag(n, Stored({n * GetParam(), EndOf(n), n, 1})));
  }
  uint64_t EndOf(uint64_t chunk) const {
    return std::min((chunk + 1) * GetParam(), layer_.header.covered_length);
  }
  ByteSpan Stored(const ChunkRange& range) const {
    return AsBytes(layer_.bytes).subspan(range.begin, range.size());
  }
  std::span<const archive::Tag> Tags(const ChunkRange& range) const {
    return std::span(tags_).subspan(range.first, range.count);
  }
  absl::Status Open(uint64_t offset, std::string& out, VerifiedChunks* known = nullptr) {
    const ChunkRange range = ChunksOf(layer_.header, offset, out.size());
    return opener_->Open(range, Stored(range), Tags(range), offset,
                         std::as_writable_bytes(std::span(out)), known);
  }

  TestLayer layer_;
  const std::unique_ptr<ChunkOpener> opener_;
  std::vector<archive::Tag> tags_;
};
INSTANTIATE_TEST_SUITE_P(ChunkSizes, ChunkOpenerTest, testing::Values(4096, 16384, 65536, 1 << 20));

TEST_P(ChunkOpenerTest, GivesThePlaintextOfAnyPart) {
  for (const uint64_t offset : {0, 1, 4095, 65536, 1'000'000, (1 << 20) + 77})
    for (const size_t size : {1, 16, 4096, 65536, 1'048'576}) {
      std::string out(size, '#');
      const absl::Status status = Open(offset, out);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(out == layer_.plain.substr(offset, size)) << offset << "+" << size;
    }
}

TEST_P(ChunkOpenerTest, OpensInPlace) {
  const ChunkRange range = ChunksOf(layer_.header, 0, 2 << 20);
  std::string bytes(AsText(Stored(range)));
  const MutableByteSpan memory = std::as_writable_bytes(std::span(bytes));
  ASSERT_TRUE(opener_->Open(range, memory, Tags(range), range.begin, memory).ok());
  EXPECT_TRUE(bytes == layer_.plain.substr(range.begin, range.size()));
}

TEST_P(ChunkOpenerTest, EveryBadChunkIsNamedAndNothingOfItIsDecrypted) {
  const uint64_t bad = layer_.header.covered_length / GetParam() / 2;
  layer_.bytes[EndOf(bad) - 1] ^= 1;
  std::string out(EndOf(bad), '#');
  const absl::Status status = Open(0, out);
  ASSERT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(Message(status),
              HasSubstr(fmt::format("chunk {} at byte {} of the layer", bad, bad * GetParam())));
  EXPECT_EQ(out.back(), '#');
}

TEST_P(ChunkOpenerTest, WhatIsKnownToBeGoodIsNotVerifiedAgain) {
  VerifiedChunks known;
  std::string out(layer_.header.chunk_size + 1, '#');
  ASSERT_TRUE(Open(0, out, &known).ok());
  EXPECT_TRUE(known.Has(0));
  EXPECT_TRUE(known.Has(1));
  EXPECT_FALSE(known.Has(2));
  tags_[1][0] ^= std::byte{1};
  EXPECT_TRUE(Open(0, out, &known).ok());
  EXPECT_TRUE(absl::IsDataLoss(Open(0, out)));
  known.Clear();
  EXPECT_TRUE(absl::IsDataLoss(Open(0, out, &known)));
}

TEST_P(ChunkOpenerTest, RefusesMemoryThatDoesNotFitItsRange) {
  ChunkRange range = ChunksOf(layer_.header, 0, 2 << 20);
  std::string out(2 << 20, '#');
  const MutableByteSpan memory = std::as_writable_bytes(std::span(out));
  EXPECT_FALSE(opener_->Open(range, Stored(range), Tags(range), 1, memory).ok());
  EXPECT_FALSE(opener_->Verify(range, Stored(range).subspan(1), Tags(range)).ok());
  EXPECT_FALSE(opener_->Verify(range, Stored(range), Tags(range).subspan(1)).ok());
}

std::unique_ptr<ChunkOpener> OpenerOf(const TestLayer& layer) {
  return *ChunkOpener::Make(layer.key, layer.header);
}

TEST(OpenerPoolTest, KeepsTheMostRecentUpToItsLimitAndForgetsALayer) {
  const TestLayer layer = BuildTestLayer({}, true);
  OpenerPool pool(3);
  EXPECT_EQ(pool.Take(1), nullptr);
  for (uint64_t id = 1; id <= 4; ++id) pool.GiveBack(id, OpenerOf(layer));
  EXPECT_EQ(pool.size(), 3u);
  EXPECT_EQ(pool.Take(1), nullptr);
  pool.GiveBack(4, OpenerOf(layer));
  pool.Forget(4);
  EXPECT_EQ(pool.Take(4), nullptr);
  EXPECT_NE(pool.Take(3), nullptr);
  EXPECT_EQ(pool.size(), 0u);
}

}  // namespace
}  // namespace kapsule::blob
