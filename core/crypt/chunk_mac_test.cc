#include <gtest/gtest.h>

#include <set>

#include "core/crypt/evp.h"
#include "core/crypt/layer_cipher.h"

namespace kapsule::crypt {
namespace {

constexpr uint32_t kChunk = 65536;
constexpr uint64_t kCovered = 3 * kChunk;

Bytes Counting(size_t size, size_t first) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(first + i);
  return bytes;
}

Bytes TestChunk() {
  Bytes chunk(kChunk);
  for (size_t i = 0; i < chunk.size(); ++i) chunk[i] = static_cast<std::byte>(i * 7 + 3);
  return chunk;
}

LayerKey TestKey(size_t first_of_nonce = 64) {
  return {Secret::CopyOf(Counting(32, 0)), Secret::CopyOf(Counting(16, first_of_nonce))};
}

ChunkMac TestMac(uint32_t chunk = kChunk, uint64_t covered = kCovered) {
  return ChunkMac::Create(TestKey(), Counting(32, 32), chunk, covered).value();
}

// The constants of this file were computed with another implementation
// (pyca/cryptography; the HKDF also with `openssl kdf`).
TEST(ChunkMacTest, MacKeyIsHkdfWithUnitLengthAndNonceInItsInfo) {
  std::string info = "kapsule v1 chunk mac";
  info += std::string("\0\0\1\0", 4) + std::string("\0\0\3\0\0\0\0\0", 8);
  info += AsText(Counting(16, 64));
  const Secret key = HkdfSha256(Counting(32, 0), Counting(32, 32), AsBytes(info), 32).value();
  EXPECT_EQ(ToHex(key.bytes()), "35dc64bed4ac8b12a8c1be5b0762a040b66f34ef0831e81f8ea5b61496bedaab");
}

TEST(ChunkMacTest, TagsAreGmacWithTheIndexAsIv) {
  ChunkMac mac = TestMac();
  const Bytes chunk = TestChunk();
  EXPECT_EQ(ToHex(mac.Tag(0, chunk).value()), "91cfe74f22ca0d06577522d63feb6384");
  EXPECT_EQ(ToHex(mac.Tag(1, chunk).value()), "6ee4cc7a0f75c2bb3c0f6eb925a0ea0e");
  EXPECT_EQ(ToHex(mac.Tag(uint64_t{1} << 40, chunk).value()), "e4dad836cac8c16f400c04f8a15c2e33");
  EXPECT_EQ(ToHex(mac.Tag(2, ByteSpan(chunk).first(1000)).value()),
            "343cb5e83298b68a059f82bc2948400e");
}

TEST(ChunkMacTest, EveryFlippedByteOfChunkOrTagFails) {
  ChunkMac mac = TestMac();
  Bytes chunk(300);
  ChunkTag tag = mac.Tag(5, chunk).value();
  ASSERT_TRUE(mac.Verify(5, chunk, tag).ok());
  for (std::byte& byte : chunk) {
    byte ^= std::byte{1};
    EXPECT_TRUE(absl::IsDataLoss(mac.Verify(5, chunk, tag)));
    byte ^= std::byte{1};
  }
  for (std::byte& byte : tag) {
    byte ^= std::byte{0x80};
    EXPECT_TRUE(absl::IsDataLoss(mac.Verify(5, chunk, tag)));
    byte ^= std::byte{0x80};
  }
}

TEST(ChunkMacTest, AnotherPositionLengthUnitSaltOrNonceFails) {
  ChunkMac mac = TestMac();
  const Bytes chunk(300);
  const ChunkTag tag = mac.Tag(5, chunk).value();
  EXPECT_TRUE(absl::IsDataLoss(mac.Verify(4, chunk, tag)));
  EXPECT_TRUE(absl::IsDataLoss(mac.Verify(5, ByteSpan(chunk).first(299), tag)));
  EXPECT_TRUE(absl::IsDataLoss(TestMac(kChunk, kCovered + kChunk).Verify(5, chunk, tag)));
  EXPECT_TRUE(absl::IsDataLoss(TestMac(kChunk / 2).Verify(5, chunk, tag)));
  ChunkMac salted = ChunkMac::Create(TestKey(), Counting(32, 33), kChunk, kCovered).value();
  EXPECT_TRUE(absl::IsDataLoss(salted.Verify(5, chunk, tag)));
  ChunkMac other = ChunkMac::Create(TestKey(65), Counting(32, 32), kChunk, kCovered).value();
  EXPECT_TRUE(absl::IsDataLoss(other.Verify(5, chunk, tag)));
}

TEST(ChunkMacTest, RefusesEmptyChunksAndOtherLengthsOfKeyAndSalt) {
  EXPECT_TRUE(absl::IsInvalidArgument(TestMac().Tag(0, {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      ChunkMac::Create(TestKey(), Counting(31, 0), kChunk, kCovered).status()));
  for (const auto& [key_size, nonce_size] : {std::pair(16, 16), {32, 15}, {32, 17}, {33, 16}}) {
    const LayerKey key{Secret(key_size), Secret(nonce_size)};
    EXPECT_TRUE(
        absl::IsInvalidArgument(ChunkMac::Create(key, Counting(32, 0), kChunk, kCovered).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(CommitmentTo(key, Counting(32, 0)).status()));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(CommitmentTo(TestKey(), Counting(33, 0)).status()));
}

TEST(CommitmentTest, IsHkdfOfKeyAndNonceUnderTheSalt) {
  EXPECT_EQ(ToHex(CommitmentTo(TestKey(), Counting(32, 32)).value()),
            "59f79a6d1e6beb60d49ef5cdb693dbee96aaf34eb9eef11af8124ad7c8b63bf9");
}

TEST(CommitmentTest, ChangesWithEveryByteOfKeyNonceAndSalt) {
  LayerKey key = TestKey();
  Bytes salt = Counting(32, 32);
  std::set<Commitment> seen = {CommitmentTo(key, salt).value()};
  for (const MutableByteSpan part : {key.key.bytes(), key.nonce.bytes(), MutableByteSpan(salt)}) {
    for (std::byte& byte : part) {
      byte ^= std::byte{1};
      EXPECT_TRUE(seen.insert(CommitmentTo(key, salt).value()).second);
      byte ^= std::byte{1};
    }
  }
}

}  // namespace
}  // namespace kapsule::crypt
