#include "core/base/secret.h"

#include <gtest/gtest.h>

namespace kapsule {
namespace {

TEST(SecretTest, MovesAndComparesWithoutCopies) {
  static_assert(!std::is_copy_constructible_v<Secret>);
  Secret a = Secret::CopyOf("key bytes");
  const std::byte* at = a.bytes().data();
  Secret b = std::move(a);
  EXPECT_EQ(b.bytes().data(), at);
  EXPECT_TRUE(a.empty());  // NOLINT(bugprone-use-after-move)
  EXPECT_TRUE(b.Equals(AsBytes("key bytes")));
  EXPECT_FALSE(b.Equals(AsBytes("key byteS")));
  EXPECT_FALSE(b.Equals(AsBytes("key")));
  EXPECT_TRUE(b.Clone().Equals(b.bytes()));
}

TEST(SecretTest, TruncateCleansesTheRest) {
  Secret a = Secret::CopyOf("0123456789");
  const std::byte* data = a.bytes().data();
  a.Truncate(3);
  EXPECT_EQ(a.text(), "012");
  EXPECT_EQ(data[5], std::byte{0});
}

TEST(SecretTest, Base64IsDecodedInPlace) {
  EXPECT_EQ(DecodeBase64ToSecret("Zm9vYmE=", false).value().text(), "fooba");
  EXPECT_EQ(DecodeBase64ToSecret("Zm9vYmE", true).value().text(), "fooba");
  EXPECT_FALSE(DecodeBase64ToSecret("Zm9vYmE", false).ok());
}

TEST(SecretTest, RandomBytesDiffer) {
  Secret a(32), b(32);
  ASSERT_TRUE(FillRandom(a.bytes()).ok());
  ASSERT_TRUE(FillRandom(b.bytes()).ok());
  EXPECT_FALSE(a.Equals(b.bytes()));
}

}  // namespace
}  // namespace kapsule
