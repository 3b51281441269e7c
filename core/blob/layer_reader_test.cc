#include "core/blob/layer_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "core/blob/test_layer.h"

namespace kapsule::blob {
namespace {

using testing::HasSubstr;

std::optional<crypt::LayerKey> KeyOf(const TestLayer& layer) {
  if (!layer.header.encrypted) return std::nullopt;
  return layer.key.Clone();
}

absl::StatusOr<std::unique_ptr<LayerReader>> Open(const TestLayer& layer) {
  return LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(layer.bytes)), layer.ref,
                           KeyOf(layer));
}

// What the buffer holds before a read, so that leftovers are seen.
constexpr char kOldByte = '#';

struct ReadResult {
  absl::Status status;
  std::string bytes;
};
ReadResult Read(const LayerReader& reader, uint64_t offset, size_t size) {
  ReadResult result;
  result.bytes.assign(size, kOldByte);
  result.status = reader.Read(offset, std::as_writable_bytes(std::span(result.bytes)));
  return result;
}

struct Form {
  bool encrypted;
  uint32_t chunk_size;
};
class LayerFormTest : public testing::TestWithParam<Form> {
 protected:
  const TestLayer layer_ =
      BuildTestLayer(SampleFiles(), GetParam().encrypted, GetParam().chunk_size);
  uint64_t covered() const { return layer_.header.covered_length; }
};
INSTANTIATE_TEST_SUITE_P(Forms, LayerFormTest,
                         testing::Values(Form{false, 65536}, Form{true, 4096}, Form{true, 65536},
                                         Form{true, 1 << 20}));

TEST_P(LayerFormTest, ReadsThePlaintextAtEveryOffset) {
  const auto reader = Open(layer_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  for (const uint64_t size : {0, 1, 15, 4096, 65535, 65536, 65537, 1 << 20, (2 << 20) + 1}) {
    for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{4095}, uint64_t{65521},
                                  uint64_t{65536}, uint64_t{1048575}, covered() - size}) {
      const ReadResult got = Read(**reader, offset, size);
      ASSERT_TRUE(got.status.ok()) << got.status;
      ASSERT_EQ(got.bytes == layer_.plain.substr(offset, size), true) << offset << "+" << size;
    }
  }
  EXPECT_TRUE(Read(**reader, 0, covered()).bytes == layer_.plain.substr(0, covered()));
}

TEST_P(LayerFormTest, EndsWithTheCoveredRange) {
  const auto reader = Open(layer_);
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE(Read(**reader, covered(), 0).status.ok());
  for (const uint64_t offset : {covered() - 99, covered(), covered() + 1, ~uint64_t{0}}) {
    const ReadResult got = Read(**reader, offset, 100);
    EXPECT_TRUE(absl::IsOutOfRange(got.status)) << offset;
    EXPECT_EQ(got.bytes, std::string(100, '\0'));
  }
}

TEST_P(LayerFormTest, ReadsTheToc) {
  const auto reader = Open(layer_);
  ASSERT_TRUE(reader.ok());
  const auto toc = (*reader)->ReadToc();
  ASSERT_TRUE(toc.ok()) << toc.status();
  EXPECT_EQ(archive::SerializeToc(*toc), archive::SerializeToc(layer_.toc));
}

TEST_P(LayerFormTest, RefusesEveryTruncation) {
  for (size_t size = 0; size < layer_.bytes.size(); size += 40'009) {
    TestLayer cut = BuildTestLayer({}, false);
    cut.bytes = layer_.bytes.substr(0, size);
    const auto reader = LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(cut.bytes)),
                                          layer_.ref, KeyOf(layer_));
    EXPECT_TRUE(absl::IsDataLoss(reader.status())) << size << reader.status();
  }
}

TEST_P(LayerFormTest, RefusesTheIndexOfAnotherLayer) {
  const TestLayer other =
      BuildTestLayer(SampleFiles(), GetParam().encrypted, GetParam().chunk_size);
  if (GetParam().encrypted) {
    EXPECT_TRUE(
        absl::IsDataLoss(LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(layer_.bytes)),
                                           other.ref, KeyOf(layer_))
                             .status()));
  }
  // The other's whole index behind our bytes, and its root believed.
  const std::string mixed = layer_.bytes.substr(0, covered()) + other.bytes.substr(covered());
  const auto open = [&](const TestLayer& owner) {
    return LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(mixed)), other.ref,
                             KeyOf(owner));
  };
  const auto reader = open(other);
  ASSERT_TRUE(reader.ok()) << reader.status();
  if (GetParam().encrypted) {
    EXPECT_TRUE(absl::IsDataLoss(Read(**reader, 0, 1).status));
    EXPECT_TRUE(absl::IsPermissionDenied(open(layer_).status()));
  }
}

TEST(LayerReaderTest, KeyAndHeaderMustAgreeOnEncryption) {
  const TestLayer encrypted = BuildTestLayer(SampleFiles(), true);
  const TestLayer plain = BuildTestLayer(SampleFiles(), false);
  const auto open = [](const TestLayer& layer, std::optional<crypt::LayerKey> key) {
    return LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(layer.bytes)), layer.ref,
                             std::move(key))
        .status();
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(open(encrypted, std::nullopt)));
  EXPECT_TRUE(absl::IsFailedPrecondition(open(plain, encrypted.key.Clone())));
  EXPECT_TRUE(absl::IsInvalidArgument(open(encrypted, crypt::LayerKey{Secret(31), Secret(16)})));
}

TEST(LayerReaderTest, AnotherKeyOrNonceIsToldFromDamage) {
  const TestLayer layer = BuildTestLayer(SampleFiles(), true);
  for (const bool in_key : {true, false}) {
    crypt::LayerKey other = layer.key.Clone();
    (in_key ? other.key : other.nonce).bytes()[15] ^= std::byte{1};
    const absl::Status status =
        LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(layer.bytes)), layer.ref,
                          std::move(other))
            .status();
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("the unwrapped key is not this layer's"));
  }
}

// Gives a layer another header, and the root of that.
void ReplaceHeader(TestLayer& layer) {
  const auto header = layer.header.Encode();
  layer.bytes.replace(layer.ref.offset, layer.ref.length, AsText(header));
  layer.ref.root = oci::Digest::Of(header);
}

TEST(LayerReaderTest, AKeyThatTheHeaderDoesNotCommitToOpensNothing) {
  TestLayer layer = BuildTestLayer(SampleFiles(), true);
  ASSERT_TRUE(Open(layer).ok());
  const archive::IndexHeader good = layer.header;
  layer.header.commitment[31] ^= std::byte{0x80};
  ReplaceHeader(layer);
  EXPECT_TRUE(absl::IsPermissionDenied(Open(layer).status()));
  layer.header.commitment = {};
  ReplaceHeader(layer);
  EXPECT_TRUE(absl::IsPermissionDenied(Open(layer).status()));
  layer.header = good;
  layer.header.salt[0] ^= std::byte{1};
  ReplaceHeader(layer);
  EXPECT_TRUE(absl::IsPermissionDenied(Open(layer).status()));
}

TEST(LayerReaderTest, ABadChunkFailsTheWholeRequestAndNoOther) {
  TestLayer layer = BuildTestLayer(SampleFiles(), true);
  constexpr uint64_t kBad = 5 * 65536 + 77;
  layer.bytes[kBad] = static_cast<char>(layer.bytes[kBad] ^ 1);
  const auto reader = Open(layer);
  ASSERT_TRUE(reader.ok());
  const ReadResult got = Read(**reader, 0, 1 << 20);
  EXPECT_TRUE(absl::IsDataLoss(got.status));
  EXPECT_THAT(Message(got.status), HasSubstr("chunk 5 at byte 327680"));
  EXPECT_EQ(got.bytes, std::string(1 << 20, '\0'));
  EXPECT_TRUE(absl::IsDataLoss(Read(**reader, 5 * 65536 + 65535, 1).status));
  EXPECT_TRUE(Read(**reader, 5 * 65536 - 1, 1).status.ok());
  EXPECT_TRUE(Read(**reader, 6 * 65536, 65536).status.ok());
}

TEST(LayerReaderTest, ChunksCannotChangePlaces) {
  TestLayer layer = BuildTestLayer(SampleFiles(), true);
  std::swap_ranges(layer.bytes.begin(), layer.bytes.begin() + 65536, layer.bytes.begin() + 65536);
  const auto reader = Open(layer);
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE(absl::IsDataLoss(Read(**reader, 0, 1).status));
  EXPECT_TRUE(absl::IsDataLoss(Read(**reader, 65536, 1).status));
}

TEST(LayerReaderTest, TocMustHaveTheDigestOfTheHeader) {
  for (const bool encrypted : {false, true}) {
    TestLayer layer = BuildTestLayer(SampleFiles(), encrypted);
    layer.header.toc_digest = oci::Digest::Of(AsBytes("another"));
    ReplaceHeader(layer);
    const auto reader = Open(layer);
    ASSERT_TRUE(reader.ok()) << reader.status();
    const auto toc = (*reader)->ReadToc();
    EXPECT_TRUE(absl::IsDataLoss(toc.status()));
    EXPECT_THAT(Message(toc.status()), HasSubstr("toc"));
  }
}

// Counts what is read of a blob.
class CountingReader final : public ReaderAt {
 public:
  CountingReader(const std::string& bytes, std::atomic<uint64_t>& count)
      : bytes_(AsBytes(bytes)), count_(count) {}
  uint64_t size() const override { return bytes_.size(); }
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    count_ += out.size();
    return bytes_.ReadAt(offset, out);
  }

 private:
  const MemoryReader bytes_;
  std::atomic<uint64_t>& count_;
};

TEST(LayerReaderTest, OpeningReadsOnlyTheHeaderAndReadingOnlyItsChunks) {
  const TestLayer layer = BuildTestLayer(SampleFiles(), true);
  std::atomic<uint64_t> count{0};
  const auto reader = LayerReader::Open(std::make_unique<CountingReader>(layer.bytes, count),
                                        layer.ref, layer.key.Clone());
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(count, archive::kHeaderSize);
  ASSERT_TRUE(Read(**reader, 0, 1).status.ok());  // loads the page of tags
  count = 0;
  ASSERT_TRUE(Read(**reader, 65535, 2).status.ok());
  EXPECT_EQ(count, 2u * 65536);
}

TEST(LayerReaderTest, SameAsComparesKeyNonceAndRoot) {
  const TestLayer layer = BuildTestLayer(SampleFiles(), true);
  const auto reader = Open(layer);
  ASSERT_TRUE(reader.ok());
  EXPECT_TRUE((*reader)->SameAs(layer.key.Clone(), layer.ref));
  EXPECT_FALSE((*reader)->SameAs(std::nullopt, layer.ref));
  crypt::LayerKey other = layer.key.Clone();
  other.key.bytes()[31] ^= std::byte{1};
  EXPECT_FALSE((*reader)->SameAs(std::move(other), layer.ref));
  other = layer.key.Clone();
  other.nonce.bytes()[0] ^= std::byte{1};
  EXPECT_FALSE((*reader)->SameAs(std::move(other), layer.ref));
  oci::IndexRef ref = layer.ref;
  ref.root = oci::Digest::Of(AsBytes("x"));
  EXPECT_FALSE((*reader)->SameAs(layer.key.Clone(), ref));
  ref = layer.ref;
  ++ref.offset;
  EXPECT_FALSE((*reader)->SameAs(layer.key.Clone(), ref));

  const TestLayer plain = BuildTestLayer(SampleFiles(), false);
  EXPECT_TRUE((*Open(plain))->SameAs(std::nullopt, plain.ref));
  EXPECT_FALSE((*Open(plain))->SameAs(layer.key.Clone(), plain.ref));
}

TEST(LayerReaderTest, ReadersShareOpenersAndPagesUntilTheyGo) {
  const TestLayer layer = BuildTestLayer(SampleFiles(), true);
  const LayerReader::Shared shared{std::make_shared<archive::PageCache>(1 << 20),
                                   std::make_shared<OpenerPool>()};
  const auto open = [&] {
    return *LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(layer.bytes)), layer.ref,
                              layer.key.Clone(), shared);
  };
  auto first = open(), second = open();
  EXPECT_NE(first->id(), second->id());
  ASSERT_TRUE(Read(*first, 0, 10).status.ok());
  const size_t pages = shared.pages->bytes();
  ASSERT_TRUE(Read(*second, 0, 10).status.ok());
  EXPECT_EQ(shared.openers->size(), 2u);
  EXPECT_EQ(shared.pages->bytes(), 2 * pages);
  second.reset();
  EXPECT_EQ(shared.openers->size(), 1u);
  EXPECT_EQ(shared.pages->bytes(), pages);
  first.reset();
  EXPECT_EQ(shared.openers->size(), 0u);
  EXPECT_EQ(shared.pages->bytes(), 0u);
}

TEST(LayerReaderTest, ThreadsReadTogether) {
  const TestLayer layer = BuildTestLayer(SampleFiles(), true);
  const auto reader = Open(layer);
  ASSERT_TRUE(reader.ok());
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 300; ++i) {
        const uint64_t offset =
            (i * 1'234'567 + t * 98'765) % (layer.header.covered_length - 70000);
        const ReadResult got = Read(**reader, offset, 70000);
        ASSERT_TRUE(got.status.ok()) << got.status;
        ASSERT_TRUE(got.bytes == layer.plain.substr(offset, 70000)) << offset;
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace kapsule::blob
