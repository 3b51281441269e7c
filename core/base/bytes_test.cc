#include "core/base/bytes.h"

#include <gtest/gtest.h>

namespace kapsule {
namespace {

TEST(BytesTest, HexRoundTripsAndRefusesOtherCharacters) {
  EXPECT_EQ(ToHex(AsBytes(std::string_view("\x00\xff\x10", 3))), "00ff10");
  EXPECT_EQ(FromHex("00ff10").value(), std::string("\x00\xff\x10", 3));
  EXPECT_FALSE(FromHex("0").ok());
  EXPECT_FALSE(FromHex("0G").ok());
  EXPECT_FALSE(FromHex("AB").ok());
}

TEST(BytesTest, Base64MatchesTheRfcVectors) {
  const std::pair<std::string, std::string> vectors[] = {{"", ""},
                                                         {"f", "Zg=="},
                                                         {"fo", "Zm8="},
                                                         {"foo", "Zm9v"},
                                                         {"foob", "Zm9vYg=="},
                                                         {"fooba", "Zm9vYmE="},
                                                         {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, encoded] : vectors) {
    EXPECT_EQ(EncodeBase64(AsBytes(plain)), encoded);
    EXPECT_EQ(DecodeBase64(encoded).value(), plain);
  }
  EXPECT_EQ(EncodeBase64Url(AsBytes("\xff\xfe")), "__4");
  EXPECT_EQ(DecodeBase64Url("__4").value(), "\xff\xfe");
}

TEST(BytesTest, Base64RefusesWhatIsNotCanonical) {
  for (const char* bad : {"Zg", "Zg=", "Zh==", "Zm9v=", "Z===", "Zm 9", "__4="})
    EXPECT_FALSE(DecodeBase64(bad).ok()) << bad;
  for (const char* bad : {"Z", "Zg==", "//4", "Zh"}) EXPECT_FALSE(DecodeBase64Url(bad).ok()) << bad;
}

TEST(BytesTest, CheckedArithmeticSaysWhenItDoesNotFit) {
  EXPECT_EQ(CheckedAdd(1, 2), 3u);
  EXPECT_EQ(CheckedAdd(UINT64_MAX, 1), std::nullopt);
  EXPECT_EQ(CheckedMul(1ull << 32, 1ull << 32), std::nullopt);
  EXPECT_EQ(AlignUp(4097, 4096), 8192u);
  EXPECT_EQ(CeilDiv(UINT64_MAX, 2), 1ull << 63);
}

}  // namespace
}  // namespace kapsule
