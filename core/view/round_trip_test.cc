// Layers from their pieces to a view and back, whole and damaged.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/archive/index_reader.h"
#include "core/blob/test_layer.h"
#include "core/view/view.h"

namespace kapsule::view {
namespace {

using blob::BuildTestLayer;
using blob::SampleFiles;
using blob::TestLayer;

absl::StatusOr<std::unique_ptr<blob::LayerReader>> OpenLayer(const TestLayer& layer) {
  std::optional<crypt::LayerKey> key;
  if (layer.header.encrypted) key = layer.key.Clone();
  return blob::LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(layer.bytes)), layer.ref,
                                 std::move(key));
}

absl::StatusOr<std::unique_ptr<View>> OpenView(const TestLayer& layer) {
  ASSIGN_OR_RETURN(std::unique_ptr<blob::LayerReader> reader, OpenLayer(layer));
  return View::Open(std::move(reader));
}

std::string ExpectedView(const TestLayer& layer) {
  std::string bytes =
      BuildMetadata(layer.toc, layer.header.tar_length, {.seal_files = layer.header.encrypted})
          ->bytes;
  std::string tar = layer.plain.substr(0, layer.header.tar_length);
  tar.resize(AlignUp(tar.size(), 4096));
  for (const archive::TocEntry& entry : layer.toc.entries) {
    const uint64_t end = entry.offset + entry.size;
    std::fill(tar.begin() + end, tar.begin() + AlignUp(end, 4096), '\0');
  }
  return bytes + tar;
}

class RoundTripTest : public testing::TestWithParam<bool> {
 protected:
  TestLayer layer_ = BuildTestLayer(SampleFiles(), GetParam());
};
INSTANTIATE_TEST_SUITE_P(PlainAndEncrypted, RoundTripTest, testing::Bool());

TEST_P(RoundTripTest, TheViewIsMetadataAndTar) {
  const auto view = OpenView(layer_);
  ASSERT_TRUE(view.ok()) << view.status();
  const std::string expected = ExpectedView(layer_);
  ASSERT_EQ((*view)->size(), expected.size());
  const uint64_t metadata = (*view)->image().metadata_size();
  for (const uint64_t offset :
       {uint64_t{0}, uint64_t{1000}, metadata - 1, metadata, metadata + 1, metadata + 4096,
        metadata + 4097, metadata + 6000, expected.size() - 9000}) {
    for (const size_t size : {0, 1, 600, 4096, 9000}) {
      std::string got(size, '#');
      ASSERT_TRUE((*view)->Read(offset, std::as_writable_bytes(std::span(got))).ok());
      ASSERT_TRUE(got == expected.substr(offset, size)) << offset << "+" << size;
    }
  }
  std::string all(expected.size(), '#');
  ASSERT_TRUE((*view)->Read(0, std::as_writable_bytes(std::span(all))).ok());
  EXPECT_TRUE(all == expected);
  EXPECT_EQ(all.find(archive::SerializeToc(layer_.toc)), all.npos) << "the toc is no part of it";
}

TEST_P(RoundTripTest, TheViewEnds) {
  const auto view = OpenView(layer_);
  ASSERT_TRUE(view.ok());
  for (const uint64_t offset : {(*view)->size() - 1, (*view)->size(), ~uint64_t{0}}) {
    std::string got(2, '#');
    EXPECT_TRUE(absl::IsOutOfRange((*view)->Read(offset, std::as_writable_bytes(std::span(got)))));
    EXPECT_EQ(got, std::string(2, '\0'));
  }
}

// What happened to a layer with one bad byte: bytes that are served are right.
enum class Found { kAtHeader, kAtToc, kAtRead, kNowhere };
Found WhereFound(const TestLayer& bad, const std::string& expected) {
  const auto reader = OpenLayer(bad);
  if (!reader.ok()) {
    EXPECT_TRUE(absl::IsDataLoss(reader.status())) << reader.status();
    return Found::kAtHeader;
  }
  const auto view = OpenView(bad);
  if (!view.ok()) {
    EXPECT_TRUE(absl::IsDataLoss(view.status())) << view.status();
    return Found::kAtToc;
  }
  Found found = Found::kNowhere;
  constexpr size_t kPiece = 65536;
  for (uint64_t offset = 0; offset < expected.size(); offset += kPiece) {
    std::string got(std::min(kPiece, expected.size() - offset), '#');
    const absl::Status status = (*view)->Read(offset, std::as_writable_bytes(std::span(got)));
    if (status.ok()) {
      EXPECT_TRUE(got == expected.substr(offset, got.size())) << "wrong bytes at " << offset;
    } else {
      EXPECT_TRUE(absl::IsDataLoss(status)) << status;
      EXPECT_EQ(got, std::string(got.size(), '\0'));
      found = Found::kAtRead;
    }
  }
  return found;
}

TEST(DamagedLayerTest, EveryRegionIsCaughtWhereItIsUsed) {
  // Chunks of 4 KiB, so that the tags have two levels and the nodes are there.
  std::vector<blob::TestFile> files = SampleFiles();
  files.push_back(blob::MakeTestFile("models/large", blob::TestBytes(16 << 20, 9)));
  TestLayer layer = BuildTestLayer(files, true, 4096);
  const std::string expected = ExpectedView(layer);
  const archive::IndexLayout layout = archive::LayoutOf(layer.header);
  ASSERT_EQ(layout.tags.levels.size(), 2u);

  const auto with_flip = [&](uint64_t at) {
    layer.bytes[at] = static_cast<char>(layer.bytes[at] ^ 0x10);
    const Found found = WhereFound(layer, expected);
    layer.bytes[at] = static_cast<char>(layer.bytes[at] ^ 0x10);
    return found;
  };
  EXPECT_EQ(with_flip(0), Found::kAtRead);
  EXPECT_EQ(with_flip(layer.header.tar_length / 2), Found::kAtRead);
  EXPECT_EQ(with_flip(layer.header.tar_length + 10), Found::kAtToc);
  EXPECT_EQ(with_flip(layout.tags.levels[0].offset + 5), Found::kAtRead);
  EXPECT_EQ(with_flip(layout.tags.levels[1].offset + 5), Found::kAtToc);  // a node above all tags
  for (uint64_t at = 0; at < archive::kHeaderSize; at += 5)
    EXPECT_EQ(with_flip(layout.header_offset + at), Found::kAtHeader);
  // Zeros behind the TOC and block digests are not served: fetchers check them.
  EXPECT_EQ(with_flip(layout.blocks.levels[0].offset), Found::kNowhere);
  layer.bytes[layout.blocks.levels[0].offset] ^= 1;
  oci::Digest digest;
  const MemoryReader blob(AsBytes(layer.bytes));
  EXPECT_TRUE(
      absl::IsDataLoss(archive::IndexReader(blob, layer.header).ReadBlockDigests(0, {&digest, 1})));
}

TEST(DamagedLayerTest, AFlippedByteAnywhereNeverGivesWrongBytes) {
  TestLayer layer = BuildTestLayer({blob::MakeTestFile("f", blob::TestBytes(300'000, 1))}, true);
  const std::string expected = ExpectedView(layer);
  for (uint64_t at = 0; at < layer.bytes.size(); at += 1237) {
    layer.bytes[at] = static_cast<char>(layer.bytes[at] ^ 0x80);
    const Found found = WhereFound(layer, expected);
    if (at < layer.header.tar_length) {
      EXPECT_NE(found, Found::kNowhere) << at;
    }
    layer.bytes[at] = static_cast<char>(layer.bytes[at] ^ 0x80);
  }
}

TEST(DamagedLayerTest, APlainLayerIsCheckedInItsHeaderAndToc) {
  TestLayer layer = BuildTestLayer(SampleFiles(), false);
  layer.bytes[layer.header.tar_length] ^= 1;
  EXPECT_TRUE(absl::IsDataLoss(OpenView(layer).status()));
  layer.bytes[layer.header.tar_length] ^= 1;
  EXPECT_TRUE(OpenView(layer).ok());
  layer.bytes[layer.ref.offset + 100] ^= 1;
  EXPECT_TRUE(absl::IsDataLoss(OpenView(layer).status()));
}

TEST(DamagedLayerTest, EncryptingTwiceGivesOtherBytesOfTheSameView) {
  const TestLayer one = BuildTestLayer(SampleFiles(), true),
                  two = BuildTestLayer(SampleFiles(), true);
  EXPECT_FALSE(one.bytes == two.bytes);
  EXPECT_NE(one.header.toc_digest, two.header.toc_digest);
  EXPECT_TRUE(ExpectedView(one) == ExpectedView(two));
}

}  // namespace
}  // namespace kapsule::view
