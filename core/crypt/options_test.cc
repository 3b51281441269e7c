#include "core/crypt/options.h"

#include <gtest/gtest.h>

namespace kapsule::crypt {
namespace {

constexpr char kGoText[] =
    R"({"symkey":"6xNuOG8eUyRUthRTQ66OyT7xLGygt0qR16BKqAPewJs=",)"
    R"("digest":"sha256:3cf5fcc05d5b2c53f0c19d2e3dedf1bbfa88702f10d42eb17b3f5877c9fc4e99",)"
    R"("cipheroptions":{"nonce":"AAECAwQFBgcICQoLDA0ODw=="}})";

oci::IndexRef TestIndex() { return {1, 655360, 256, oci::Digest::Of(AsBytes("header"))}; }

TEST(PrivateOptionsTest, TextOfGoComesBackByteForByte) {
  const PrivateOptions options = PrivateOptions::Parse(kGoText).value();
  EXPECT_EQ(options.key.key.size(), 32u);
  EXPECT_EQ(ToHex(options.key.nonce.bytes()), "000102030405060708090a0b0c0d0e0f");
  EXPECT_FALSE(options.index.has_value());
  EXPECT_EQ(options.Serialize().text(), kGoText);
}

TEST(PrivateOptionsTest, IndexTravelsAsMemberKapsule) {
  PrivateOptions options = PrivateOptions::Parse(kGoText).value();
  options.index = TestIndex();
  const Secret text = options.Serialize();
  EXPECT_NE(text.text().find(",\"kapsule\":" + TestIndex().ToJson() + "}"), std::string_view::npos);
  EXPECT_EQ(PrivateOptions::Parse(text.text()).value().index, TestIndex());
}

TEST(PrivateOptionsTest, UnknownMembersAreIgnoredAndTheDigestMayBeMissing) {
  const PrivateOptions options =
      PrivateOptions::Parse(
          R"({"future":[{"x":1}],"symkey":"6xNuOG8eUyRUthRTQ66OyT7xLGygt0qR16BKqAPewJs=",)"
          R"("cipheroptions":{"nonce":"AAECAwQFBgcICQoLDA0ODw==","more":"AA=="},"kapsule":null})")
          .value();
  EXPECT_EQ(options.digest, "");
  EXPECT_FALSE(options.index.has_value());
}

TEST(PrivateOptionsTest, EveryTruncationIsInvalid) {
  const std::string text = kGoText;
  for (size_t size = 0; size < text.size(); ++size)
    EXPECT_TRUE(absl::IsInvalidArgument(PrivateOptions::Parse(text.substr(0, size)).status()));
}

TEST(PrivateOptionsTest, ErrorsDoNotQuoteTheKey) {
  const auto replace = [](std::string text, const std::string& from, const std::string& to) {
    return text.replace(text.find(from), from.size(), to);
  };
  for (const std::string& text :
       {replace(kGoText, "Js=", "Js"), replace(kGoText, "6xNu", "6x-u"),
        replace(kGoText, "6xNuOG8e", ""), replace(kGoText, "DA0ODw==", ""),
        replace(kGoText, "\"nonce\"", "\"nonse\""), replace(kGoText, "6xNu", "6x\\u"),
        replace(kGoText, "\"6xNuOG8eUyRUthRTQ66OyT7xLGygt0qR16BKqAPewJs=\"", "7"),
        replace(kGoText, "symkey", "sumkey"), replace(kGoText, "{\"nonce\"", "[\"nonce\""),
        replace(kGoText, "\"digest\":", "\"kapsule\":{\"version\":1},\"digest\":")}) {
    const absl::Status status = PrivateOptions::Parse(text).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_EQ(Message(status).find("UyRU"), std::string::npos) << status;
  }
}

TEST(PublicOptionsTest, TextIsOcicryptsAndComesBack) {
  PublicOptions options;
  options.hmac[0] = std::byte{0xff};
  const std::string text = options.Serialize();
  EXPECT_EQ(text, R"({"cipher":"AES_256_CTR_HMAC_SHA256","hmac":")"
                  R"(/wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","cipheroptions":{}})");
  EXPECT_EQ(PublicOptions::Parse(text).value().hmac, options.hmac);
  for (size_t size = 0; size < text.size(); ++size)
    EXPECT_FALSE(PublicOptions::Parse(text.substr(0, size)).ok()) << size;
}

TEST(PublicOptionsTest, APublicNonceIsRefused) {
  const auto with = [](const std::string& cipher_options) {
    return R"({"cipher":"AES_256_CTR_HMAC_SHA256","hmac":")"
           R"(AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","cipheroptions":)" +
           cipher_options + "}";
  };
  EXPECT_TRUE(PublicOptions::Parse(with("{}")).ok());
  EXPECT_TRUE(PublicOptions::Parse(with("null")).ok());
  EXPECT_TRUE(PublicOptions::Parse(with("{\"x\":\"AA==\"}")).ok());
  for (const char* bad : {"{\"nonce\":\"AAECAwQFBgcICQoLDA0ODw==\"}", "{\"nonce\":null}", "[]"})
    EXPECT_TRUE(absl::IsInvalidArgument(PublicOptions::Parse(with(bad)).status())) << bad;
}

TEST(PublicOptionsTest, OtherCiphersAreUnimplementedAndShortMacsInvalid) {
  EXPECT_TRUE(absl::IsUnimplemented(
      PublicOptions::Parse(R"({"cipher":"AEAD_AES_256_GCM","hmac":""})").status()));
  for (const char* bad : {R"({"cipher":"AES_256_CTR_HMAC_SHA256","hmac":""})",
                          R"({"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAA"})",
                          R"({"cipher":"AES_256_CTR_HMAC_SHA256"})", R"({"hmac":""})", "{}"})
    EXPECT_TRUE(absl::IsInvalidArgument(PublicOptions::Parse(bad).status())) << bad;
}

}  // namespace
}  // namespace kapsule::crypt
