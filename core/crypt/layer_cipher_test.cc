#include "core/crypt/layer_cipher.h"

#include <gtest/gtest.h>
#include <openssl/crypto.h>

#include <atomic>
#include <cstdlib>

namespace kapsule::crypt {
namespace {

// Counts what OpenSSL allocates. Installed before its first allocation, which
// the return value says.
std::atomic<int> allocations = 0;
void* CountingMalloc(size_t size, const char*, int) {
  ++allocations;
  return std::malloc(size);
}
void* CountingRealloc(void* at, size_t size, const char*, int) {
  ++allocations;
  return std::realloc(at, size);
}
void PlainFree(void* at, const char*, int) { std::free(at); }
const int counting = CRYPTO_set_mem_functions(CountingMalloc, CountingRealloc, PlainFree);

LayerKey TestKey(const std::string& nonce_hex) {
  LayerKey key{Secret(32), Secret::CopyOf(FromHex(nonce_hex).value())};
  for (size_t i = 0; i < 32; ++i) key.key.bytes()[i] = static_cast<std::byte>(i);
  return key;
}
constexpr char kNearWrap[] = "fffffffffffffffffffffffffffffff0";

std::string Stream(LayerCipher& cipher, uint64_t offset, size_t size) {
  Bytes bytes(size);
  EXPECT_TRUE(cipher.Apply(offset, bytes, bytes).ok());
  return ToHex(bytes);
}

// Constants computed with another implementation (pyca/cryptography).
TEST(LayerCipherTest, CounterIs128BitBigEndianAndWraps) {
  LayerCipher cipher = LayerCipher::Create(TestKey(kNearWrap)).value();
  EXPECT_EQ(Stream(cipher, 0, 16), "3307e2014db082bd45c987596e16ce02");
  EXPECT_EQ(Stream(cipher, 250, 32),
            "117b5d8f57eef29000b62a499fd0a9f39a6add2e7780f05d76ae4ab99fe5a6f6");
}

TEST(LayerCipherTest, LowHalfOfTheNonceCarriesIntoTheHighHalf) {
  LayerCipher low = LayerCipher::Create(TestKey("0000000000000000ffffffffffffffff")).value();
  LayerCipher high = LayerCipher::Create(TestKey("00000000000000010000000000000000")).value();
  EXPECT_EQ(Stream(low, 16, 64), Stream(high, 0, 64));
}

TEST(LayerCipherTest, AnyOffsetGivesTheBytesOfTheWholeStream) {
  LayerCipher cipher = LayerCipher::Create(TestKey(kNearWrap)).value();
  const std::string whole = Stream(cipher, 0, 1000);
  for (size_t offset = 0; offset < 300; ++offset)
    for (const size_t size : {0, 1, 15, 16, 17, 500})
      ASSERT_EQ(Stream(cipher, offset, size), whole.substr(2 * offset, 2 * size)) << offset;
}

TEST(LayerCipherTest, OffsetsBeyond32BitsOfBlocksCount) {
  LayerCipher cipher = LayerCipher::Create(TestKey("00000000000000000000000000000000")).value();
  LayerCipher moved = LayerCipher::Create(TestKey("00000000000000000000010000000000")).value();
  EXPECT_EQ(Stream(cipher, uint64_t{1} << 44, 64), Stream(moved, 0, 64));
}

TEST(LayerCipherTest, KeysOfOtherLengthsAreRefused) {
  LayerKey key = TestKey(kNearWrap);
  key.nonce.Truncate(12);
  EXPECT_TRUE(absl::IsInvalidArgument(LayerCipher::Create(key).status()));
  key = TestKey(kNearWrap);
  key.key.Truncate(31);
  EXPECT_TRUE(absl::IsInvalidArgument(LayerCipher::Create(key).status()));
  LayerCipher cipher = LayerCipher::Create(TestKey(kNearWrap)).value();
  Bytes in(3), out(4);
  EXPECT_TRUE(absl::IsInvalidArgument(cipher.Apply(0, in, out)));
}

TEST(LayerCipherTest, GeneratedKeysDiffer) {
  const LayerKey a = LayerKey::Generate().value(), b = LayerKey::Generate().value();
  EXPECT_EQ(a.key.size(), 32u);
  EXPECT_EQ(a.nonce.size(), 16u);
  EXPECT_FALSE(a.key.Equals(b.key.bytes()));
  EXPECT_FALSE(a.nonce.Equals(b.nonce.bytes()));
  EXPECT_TRUE(a.Clone().key.Equals(a.key.bytes()));
}

TEST(LayerCipherTest, NeitherDecryptingNorTaggingAllocates) {
  ASSERT_EQ(counting, 1);
  const LayerKey key = TestKey(kNearWrap);
  LayerCipher cipher = LayerCipher::Create(key).value();
  ChunkMac mac = ChunkMac::Create(key, Bytes(32), 65536, 65536).value();
  Bytes chunk(65536);
  ASSERT_GT(allocations.load(), 0);
  const int before = allocations;
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(cipher.Apply(static_cast<uint64_t>(i) * 1000, chunk, chunk).ok());
    ASSERT_TRUE(mac.Tag(static_cast<uint64_t>(i), chunk).ok());
  }
  EXPECT_EQ(allocations.load(), before);
}

}  // namespace
}  // namespace kapsule::crypt
