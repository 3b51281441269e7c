#include "core/crypt/hmac.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

namespace kapsule::crypt {
namespace {

Bytes Counting(size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7);
  return bytes;
}

std::string MacOf(ByteSpan key, ByteSpan message) {
  Hmac mac = Hmac::Create(Secret::CopyOf(key)).value();
  mac.Update(message);
  return ToHex(mac.Finish());
}

std::string OpensslMacOf(ByteSpan key, ByteSpan message) {
  std::array<std::byte, 32> mac;
  unsigned n;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(message.data()), message.size(),
       reinterpret_cast<unsigned char*>(mac.data()), &n);
  return ToHex(mac);
}

// RFC 4231, test cases 1 and 2.
TEST(HmacTest, IsHmacSha256) {
  EXPECT_EQ(MacOf(Bytes(20, std::byte{0x0b}), AsBytes("Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(MacOf(AsBytes("Jefe"), AsBytes("what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

TEST(HmacTest, AgreesWithOpensslForEveryLengthOfKeyAndMessage) {
  for (size_t key = 1; key <= 64; ++key)
    for (const size_t message : {0, 1, 55, 56, 63, 64, 65, 1000})
      EXPECT_EQ(MacOf(Counting(key), Counting(message)),
                OpensslMacOf(Counting(key), Counting(message)))
          << key << " " << message;
  EXPECT_TRUE(absl::IsInvalidArgument(Hmac::Create(Secret(65)).status()));
}

TEST(HmacTest, PiecesGiveTheMacOfTheWholeAlsoWhenItIsMoved) {
  const Bytes key = Counting(32), message = Counting(300);
  Hmac mac = Hmac::Create(Secret::CopyOf(key)).value();
  mac.Update(ByteSpan(message).first(1));
  mac.Update({});
  Hmac moved = std::move(mac);
  moved.Update(ByteSpan(message).subspan(1));
  EXPECT_EQ(ToHex(moved.Finish()), OpensslMacOf(key, message));
}

TEST(HmacTest, TakesItsMessageTogetherWithOtherHashes) {
  const Bytes key = Counting(32), message = Counting(100'000);
  Hmac mac = Hmac::Create(Secret::CopyOf(key)).value();
  Sha256 hash;
  UpdateAll(std::array{mac.message(), &hash}, message);
  EXPECT_EQ(ToHex(mac.Finish()), OpensslMacOf(key, message));
}

}  // namespace
}  // namespace kapsule::crypt
