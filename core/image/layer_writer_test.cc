#include "core/image/layer_writer.h"

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "core/archive/index_reader.h"
#include "core/archive/tar_writer.h"
#include "core/image/memory_store.h"

namespace kapsule::image {
namespace {
using archive::TocEntry;

std::string Pattern(size_t size) {
  std::string text(size, '\0');
  uint32_t state = 1;
  for (char& c : text) c = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return text;
}

// A tar with one file, and what was planned for it.
struct Tar {
  std::string bytes;
  archive::Toc toc;
  LayerOptions options;
};

Tar MakeTar(const std::string& content) {
  Tar tar;
  archive::TarWriter writer([&tar](ByteSpan bytes) {
    tar.bytes += AsText(bytes);
    return absl::OkStatus();
  });
  TocEntry file;
  file.path = "file";
  file.mode = 0444;
  file.size = content.size();
  EXPECT_TRUE(writer.BeginFile(file).ok());
  EXPECT_TRUE(writer.Write(AsBytes(content)).ok());
  EXPECT_EQ(*writer.EndFile(), oci::Digest::Of(AsBytes(content)));
  tar.toc = *writer.Finish();
  tar.options.tar_length = tar.bytes.size();
  tar.options.toc_length = archive::SerializeToc(tar.toc).size();
  return tar;
}

absl::StatusOr<WrittenLayer> WriteTo(MemoryStore& store, const Tar& tar, LayerOptions options) {
  ASSIGN_OR_RETURN(const uint64_t size, StoredSize(options));
  ASSIGN_OR_RETURN(auto upload, store.StartBlob(size));
  ASSIGN_OR_RETURN(const auto writer, LayerWriter::Start(std::move(options), std::move(upload)));
  // Pieces of an odd size, so that they meet no boundary.
  for (size_t at = 0; at < tar.bytes.size(); at += 77'777)
    RETURN_IF_ERROR(writer->Write(AsBytes(std::string_view(tar.bytes).substr(at, 77'777))));
  return writer->Finish(tar.toc);
}

std::string Decrypted(const std::string& stored, const crypt::LayerKey& key) {
  std::string plain(stored.size(), '\0');
  EXPECT_TRUE(crypt::LayerCipher::Create(key)
                  ->Apply(0, AsBytes(stored), std::as_writable_bytes(std::span(plain)))
                  .ok());
  return plain;
}

void ExpectGoodIndex(const std::string& stored, const WrittenLayer& layer) {
  const MemoryReader blob(AsBytes(stored));
  const auto header = archive::ReadHeader(blob, layer.index);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->encrypted, layer.secret.has_value());
  const archive::IndexReader index(blob, *header);
  const std::string_view covered(stored.data(), header->covered_length);
  std::vector<oci::Digest> blocks(index.layout().blocks.entries);
  ASSERT_TRUE(index.ReadBlockDigests(0, blocks).ok());
  for (size_t n = 0; n < blocks.size(); ++n)
    EXPECT_EQ(blocks[n],
              oci::Digest::Of(AsBytes(covered.substr(n * header->block_size, header->block_size))));
  const auto stored_toc = covered.substr(header->tar_length, header->toc_length);
  EXPECT_EQ(header->toc_digest, oci::Digest::Of(AsBytes(stored_toc)));
  if (!layer.secret) return;
  EXPECT_EQ(header->commitment, *crypt::CommitmentTo(layer.secret->key, header->salt));

  std::vector<archive::Tag> tags(index.layout().tags.entries);
  ASSERT_TRUE(index.ReadTags(0, tags).ok());
  ASSERT_EQ(tags.size(), CeilDiv(covered.size(), header->chunk_size));
  auto mac = crypt::ChunkMac::Create(layer.secret->key, header->salt, header->chunk_size,
                                     header->covered_length);
  for (size_t n = 0; n < tags.size(); ++n) {
    const auto chunk = covered.substr(n * header->chunk_size, header->chunk_size);
    EXPECT_TRUE(mac->Verify(n, AsBytes(chunk), tags[n]).ok()) << n;
  }
}

void ExpectGoodPlaintext(const std::string& plain, const Tar& tar, const WrittenLayer& layer) {
  EXPECT_EQ(layer.diff_id, oci::Digest::Of(AsBytes(plain)));
  EXPECT_TRUE(plain.starts_with(tar.bytes));
  const std::string toc = plain.substr(tar.bytes.size(), tar.options.toc_length);
  EXPECT_EQ(toc, archive::SerializeToc(tar.toc));
}

class LayerWriterSizes : public testing::TestWithParam<std::tuple<size_t, uint32_t>> {};

TEST_P(LayerWriterSizes, StoresWhatTheFormatSays) {
  const auto [size, chunk_size] = GetParam();
  const Tar tar = MakeTar(Pattern(size));
  for (const bool encrypt : {false, true}) {
    MemoryStore store;
    LayerOptions options = tar.options;
    options.chunk_size = chunk_size;
    options.encrypt = encrypt;
    uint64_t told = 0;
    options.on_written = [&told](uint64_t bytes) { return told += bytes, absl::OkStatus(); };
    const auto layer = WriteTo(store, tar, options);
    ASSERT_TRUE(layer.ok()) << layer.status();
    EXPECT_TRUE(store.digests_agree);
    EXPECT_EQ(told, layer->size);
    EXPECT_EQ(*StoredSize(options), layer->size);
    const std::string& stored = store.blobs.at(layer->digest);
    ExpectGoodIndex(stored, *layer);
    ASSERT_EQ(layer->secret.has_value(), encrypt);
    if (!encrypt) {
      EXPECT_EQ(layer->diff_id, layer->digest);
      ExpectGoodPlaintext(stored, tar, *layer);
      continue;
    }
    ExpectGoodPlaintext(Decrypted(stored, layer->secret->key), tar, *layer);
    auto hmac = crypt::Hmac::Create(layer->secret->key.key);
    hmac->Update(AsBytes(stored));
    EXPECT_EQ(hmac->Finish(), layer->secret->hmac);
  }
}

// Around chunks, pages, blocks, and the 64 KiB that the covered range ends on.
INSTANTIATE_TEST_SUITE_P(
    AllSizes, LayerWriterSizes,
    testing::Combine(testing::Values(0, 1, 4096, 60'000, 65'535, 65'536, 65'537, (1 << 20) - 65'536,
                                     (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (5 << 20) + 12'345),
                     testing::Values(4096, 16384, 65536, 1 << 20)));

TEST(LayerWriterTest, ALayerMayBeLargerThanTheBuffers) {
  Tar tar = MakeTar(Pattern(40 << 20));
  tar.options.encrypt = true;
  MemoryStore store;
  const auto layer = WriteTo(store, tar, tar.options);
  ASSERT_TRUE(layer.ok()) << layer.status();
  EXPECT_TRUE(store.digests_agree);
  const std::string& stored = store.blobs.at(layer->digest);
  ExpectGoodIndex(stored, *layer);
  ExpectGoodPlaintext(Decrypted(stored, layer->secret->key), tar, *layer);
}

// Fills the room that the writer gives, by at most `step` bytes at once.
absl::Status FillRoom(LayerWriter& writer, std::string_view bytes, size_t step) {
  while (!bytes.empty()) {
    ASSIGN_OR_RETURN(const MutableByteSpan room, writer.Room());
    const size_t length = std::min({step, room.size(), bytes.size()});
    std::memcpy(room.data(), bytes.data(), length);
    RETURN_IF_ERROR(writer.Filled(length));
    bytes.remove_prefix(length);
  }
  return absl::OkStatus();
}

// Contents that begin and end inside a piece, at its edges and pieces later.
TEST(LayerWriterTest, GivesTheDigestOfAnyContentThatItIsFilledWith) {
  const Tar tar = MakeTar(Pattern(9 << 20));
  const std::string_view bytes = tar.bytes;
  const std::vector<size_t> edges = {0,       512,     512,           4096,          1 << 20,
                                     2 << 20, 2 << 20, (3 << 20) - 7, (3 << 20) + 9, bytes.size()};
  for (const bool encrypt : {false, true}) {
    for (const size_t step : {size_t{100'000}, kPieceSize}) {
      MemoryStore store;
      LayerOptions options = tar.options;
      options.encrypt = encrypt;
      auto writer = *LayerWriter::Start(options, *store.StartBlob(std::nullopt));
      for (size_t i = 0; i + 1 < edges.size(); ++i) {
        const auto part = bytes.substr(edges[i], edges[i + 1] - edges[i]);
        writer->BeginContent();
        ASSERT_TRUE(FillRoom(*writer, part, step).ok());
        const auto digest = writer->EndContent();
        ASSERT_TRUE(digest.ok()) << digest.status();
        EXPECT_EQ(*digest, oci::Digest::Of(AsBytes(part))) << i;
      }
      const auto layer = writer->Finish(tar.toc);
      ASSERT_TRUE(layer.ok()) << layer.status();
      EXPECT_TRUE(store.digests_agree);
      const std::string& stored = store.blobs.at(layer->digest);
      ExpectGoodPlaintext(encrypt ? Decrypted(stored, layer->secret->key) : stored, tar, *layer);
    }
  }
}

TEST(LayerWriterTest, TakesNoMoreThanThePlannedTarIntoItsRoom) {
  const Tar tar = MakeTar(Pattern(100));
  MemoryStore store;
  const auto writer = *LayerWriter::Start(tar.options, *store.StartBlob(std::nullopt));
  ASSERT_GE(writer->Room()->size(), tar.bytes.size() + 1);
  EXPECT_EQ(writer->Filled(tar.bytes.size() + 1).code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(FillRoom(*writer, tar.bytes, 1000).ok());
  EXPECT_EQ(writer->Write(AsBytes("x")).code(), absl::StatusCode::kInternal);
}

size_t ThreadCount() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

// The kernel lists a thread for a moment after it was joined.
void ExpectThreads(size_t threads) {
  for (int i = 0; i < 3000 && ThreadCount() > threads; ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_LE(ThreadCount(), threads);
}

TEST(LayerWriterTest, WhoeverIsToldOfProgressCanStopIt) {
  const Tar tar = MakeTar(Pattern(30 << 20));
  const size_t threads = ThreadCount();
  for (const uint64_t limit : {1 << 20, 10 << 20, 30 << 20}) {
    MemoryStore store;
    LayerOptions options = tar.options;
    options.encrypt = true;
    uint64_t told = 0;
    options.on_written = [&told, limit](uint64_t bytes) -> absl::Status {
      told += bytes;
      if (told >= limit) return Cancelled("enough");
      return absl::OkStatus();
    };
    EXPECT_EQ(Describe(WriteTo(store, tar, options).status()), Describe(Cancelled("enough")));
    EXPECT_EQ(store.uploads, 0);
    EXPECT_TRUE(store.blobs.empty());
    ExpectThreads(threads);
  }
}

TEST(LayerWriterTest, AWriterThatIsDroppedInTheMiddleLeavesNothing) {
  const Tar tar = MakeTar(Pattern(8 << 20));
  const size_t threads = ThreadCount();
  for (const size_t size : {size_t{0}, size_t{1000}, size_t{3} << 20, tar.bytes.size()}) {
    MemoryStore store;
    LayerOptions options = tar.options;
    options.encrypt = true;
    auto writer = *LayerWriter::Start(options, *store.StartBlob(std::nullopt));
    writer->BeginContent();
    ASSERT_TRUE(writer->Write(AsBytes(std::string_view(tar.bytes).substr(0, size))).ok());
    writer.reset();
    EXPECT_EQ(store.uploads, 0);
    EXPECT_TRUE(store.blobs.empty());
    ExpectThreads(threads);
  }
}

class Nowhere final : public oci::BlobUpload {
  absl::Status Write(ByteSpan) override { return absl::OkStatus(); }
  absl::Status Commit(const oci::Digest&, uint64_t) override { return absl::OkStatus(); }
};

// 65,536 tags are more than the index keeps in memory.
TEST(LayerWriterTest, AnErrorOfTheIndexEndsTheWriter) {
  const size_t threads = ThreadCount();
  LayerOptions options{.tar_length = 300 << 20, .toc_length = 1, .chunk_size = 4096};
  options.encrypt = true;
  options.temp_folder = "/no/such/folder";
  auto writer = *LayerWriter::Start(options, std::make_unique<Nowhere>());
  const Bytes mib(1 << 20);
  absl::Status status;
  for (int i = 0; i < 300 && status.ok(); ++i) status = writer->Write(mib);
  EXPECT_THAT(Describe(status), testing::HasSubstr("/no/such/folder"));
  EXPECT_EQ(Describe(writer->Write(mib)), Describe(status));
  writer.reset();
  ExpectThreads(threads);
}

TEST(LayerWriterTest, EveryEncryptionHasAKeyOfItsOwn) {
  const Tar tar = MakeTar(Pattern(100'000));
  LayerOptions options = tar.options;
  options.encrypt = true;
  MemoryStore store;
  const auto one = WriteTo(store, tar, options), two = WriteTo(store, tar, options);
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_FALSE(one->secret->key.key.Equals(two->secret->key.key.bytes()));
  EXPECT_FALSE(one->secret->key.nonce.Equals(two->secret->key.nonce.bytes()));
  EXPECT_NE(one->digest, two->digest);
  EXPECT_NE(one->diff_id, two->diff_id);
  EXPECT_NE(one->index.root, two->index.root);
}

TEST(LayerWriterTest, AFailedWriteDropsTheUpload) {
  const Tar tar = MakeTar(Pattern(3 << 20));
  for (const uint64_t room : {0, 1 << 20, 3 << 20}) {
    MemoryStore store;
    store.room = room;
    const auto layer = WriteTo(store, tar, tar.options);
    EXPECT_EQ(layer.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(store.uploads, 0);
    EXPECT_TRUE(store.blobs.empty());
  }
}

TEST(LayerWriterTest, RefusesATarThatIsNotAsLongAsPlanned) {
  const Tar tar = MakeTar(Pattern(100));
  MemoryStore store;
  for (const int64_t more : {-512, 512}) {
    LayerOptions options = tar.options;
    options.tar_length += more;
    EXPECT_EQ(WriteTo(store, tar, options).status().code(), absl::StatusCode::kInternal);
  }
  LayerOptions options = tar.options;
  options.toc_length += 1;
  EXPECT_EQ(WriteTo(store, tar, options).status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(store.blobs.empty());
}

TEST(LayerWriterTest, RefusesSizesThatTheFormatHasNot) {
  EXPECT_FALSE(StoredSize({.tar_length = 1024, .toc_length = 1, .chunk_size = 1000}).ok());
  EXPECT_FALSE(StoredSize({.tar_length = 1000, .toc_length = 1}).ok());
  EXPECT_FALSE(StoredSize({.tar_length = UINT64_MAX & ~511ull, .toc_length = 600}).ok());
  EXPECT_TRUE(StoredSize({.tar_length = 1024, .toc_length = 1}).ok());
}

TEST(LayerWriterTest, NamesTheLimitThatALayerExceeds) {
  constexpr uint64_t kLargest = uint64_t{1} << 43, kToc = 64 << 20;
  EXPECT_TRUE(StoredSize({.tar_length = kLargest - 512, .toc_length = 512}).ok());
  const auto error = [](uint64_t tar, uint64_t toc) {
    return Message(StoredSize({.tar_length = tar, .toc_length = toc}).status());
  };
  EXPECT_THAT(error(kLargest, 1), testing::HasSubstr("the limit is 8796093022208 bytes"));
  EXPECT_THAT(error(kLargest - 512, 513), testing::HasSubstr("the limit is 8796093022208 bytes"));
  EXPECT_EQ(error(1024, kToc), "");
  EXPECT_THAT(error(1024, kToc + 1), testing::HasSubstr("the limit is 67108864"));
}

}  // namespace
}  // namespace kapsule::image
