#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/crypt/jwe_message.h"
#include "core/crypt/keywrap_jwe.h"

namespace kapsule::crypt {
namespace {

Key TestKey(const std::string& name) {
  static auto* const keys = new std::map<std::string, Key>();
  Key& key = (*keys)[name];
  if (key == nullptr) key = LoadPrivateKey(TEST_SOURCE_DIR "/testdata/keys/" + name).value();
  return key;
}

absl::StatusOr<Secret> Unwrap(std::string_view jwe, const std::string& key) {
  const Key keys[] = {TestKey(key)};
  return UnwrapJwe(jwe, keys);
}

std::string Wrap(std::string_view payload, const std::vector<std::string>& names) {
  std::vector<Key> keys;
  for (const std::string& name : names) keys.push_back(TestKey(name));
  return WrapJwe(AsBytes(payload), keys).value();
}

// A flattened JWE of `key` whose protected header `change` has altered; its tag
// no longer fits, which the checks under test come before.
std::string WithHeader(const std::string& key, const std::function<void(Json&)>& change) {
  Json jwe = Json::parse(Wrap("payload", {key}));
  Json header = Json::parse(DecodeBase64Url(jwe["protected"].get<std::string>()).value());
  change(header);
  jwe["protected"] = EncodeBase64Url(AsBytes(DumpJson(header)));
  return DumpJson(jwe);
}

TEST(JweTest, OneRecipientIsFlattenedJson) {
  for (const char* name : {"rsa2048.pem", "ec256.pem", "ec384.pem", "ec521.pem"}) {
    const std::string text = Wrap("the payload", {name});
    const Json jwe = Json::parse(text);
    EXPECT_FALSE(jwe.contains("recipients"));
    EXPECT_EQ(jwe.size(), 5u);
    EXPECT_EQ(Unwrap(text, name).value().text(), "the payload") << name;
    EXPECT_NE(Wrap("the payload", {name}), text);
  }
}

TEST(JweTest, SeveralRecipientsAreGeneralJsonThatEachOpens) {
  const std::vector<std::string> names = {"rsa2048.pem", "ec256.pem", "rsa4096.pem", "ec521.pem"};
  const std::string text = Wrap("the payload", names);
  EXPECT_EQ(Json::parse(text)["recipients"].size(), 4u);
  for (const std::string& name : names)
    EXPECT_EQ(Unwrap(text, name).value().text(), "the payload") << name;
  EXPECT_TRUE(absl::IsNotFound(Unwrap(text, "ec384.pem").status()));
}

TEST(JweTest, AnyOfSeveralKeysOpens) {
  const Key keys[] = {TestKey("rsa4096.pem"), TestKey("ec384.pem"), TestKey("ec256.pem")};
  EXPECT_TRUE(UnwrapJwe(Wrap("p", {"ec256.pem"}), keys).ok());
  EXPECT_TRUE(absl::IsNotFound(UnwrapJwe(Wrap("p", {"ec256.pem"}), {}).status()));
}

TEST(JweTest, EveryFlippedByteFailsCleanly) {
  for (const char* name : {"ec256.pem", "rsa2048.pem"}) {
    std::string text = Wrap("the payload", {name});
    ASSERT_TRUE(Unwrap(text, name).ok());
    for (char& byte : text) {
      for (const char bit : {'\x01', '\x20', '\x80'}) {
        byte = static_cast<char>(byte ^ bit);
        const absl::Status status = Unwrap(text, name).status();
        EXPECT_TRUE(absl::IsNotFound(status) || absl::IsInvalidArgument(status)) << status;
        byte = static_cast<char>(byte ^ bit);
      }
    }
  }
}

TEST(JweTest, EveryTruncationIsInvalid) {
  const std::string text = Wrap("the payload", {"ec256.pem", "rsa2048.pem"});
  for (size_t size = 0; size < text.size(); ++size)
    EXPECT_TRUE(absl::IsInvalidArgument(Unwrap(text.substr(0, size), "ec256.pem").status()));
}

TEST(JweTest, CompressionAndExtensionsAreRefused) {
  for (const char* member : {"zip", "crit"}) {
    const absl::Status status =
        Unwrap(WithHeader("ec256.pem", [&](Json& header) { header[member] = "DEF"; }), "ec256.pem")
            .status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(Message(status), ::testing::HasSubstr(member));
  }
}

TEST(JweTest, OtherContentCiphersAreInvalidAndOtherKeyAlgorithmsNotFound) {
  EXPECT_TRUE(absl::IsInvalidArgument(
      Unwrap(WithHeader("ec256.pem", [](Json& header) { header["enc"] = "A256CBC-HS512"; }),
             "ec256.pem")
          .status()));
  for (const char* alg : {"ECDH-ES", "dir", "RSA1_5", "PBES2-HS256+A128KW", "A256KW", "RSA-OAEP"})
    EXPECT_TRUE(absl::IsNotFound(
        Unwrap(WithHeader("ec256.pem", [&](Json& header) { header["alg"] = alg; }), "ec256.pem")
            .status()))
        << alg;
}

TEST(JweTest, EphemeralKeysOffTheCurveOrOfAnotherCurveDoNotFit) {
  const auto with_epk = [](const std::function<void(Json&)>& change) {
    return Unwrap(WithHeader("ec256.pem", [&](Json& header) { change(header["epk"]); }),
                  "ec256.pem")
        .status();
  };
  EXPECT_TRUE(absl::IsNotFound(with_epk([](Json& epk) { epk["y"] = epk["x"]; })));
  EXPECT_TRUE(absl::IsNotFound(with_epk([](Json& epk) { epk["crv"] = "P-384"; })));
  EXPECT_TRUE(absl::IsNotFound(with_epk([](Json& epk) { epk["x"] = "AA"; })));
  EXPECT_TRUE(absl::IsNotFound(with_epk([](Json& epk) { epk = nullptr; })));
}

TEST(JweTest, FormsAndHeadersMayNotMix) {
  Json jwe = Json::parse(Wrap("p", {"ec256.pem"}));
  jwe["recipients"] = Json::array({Json{{"encrypted_key", "AA"}}});
  jwe["header"] = Json::object();
  EXPECT_TRUE(absl::IsInvalidArgument(Unwrap(DumpJson(jwe), "ec256.pem").status()));
  jwe = Json::parse(Wrap("p", {"ec256.pem"}));
  jwe["header"] = Json{{"alg", "RSA-OAEP"}};
  EXPECT_TRUE(absl::IsInvalidArgument(Unwrap(DumpJson(jwe), "ec256.pem").status()));
}

TEST(JweTest, AdditionalDataIsAuthenticated) {
  Json jwe = Json::parse(Wrap("p", {"ec256.pem"}));
  jwe["aad"] = "AAAA";
  EXPECT_TRUE(absl::IsNotFound(Unwrap(DumpJson(jwe), "ec256.pem").status()));
  EXPECT_EQ(ParseJwe(DumpJson(jwe)).value().aad, jwe["protected"].get<std::string>() + ".AAAA");
}

TEST(JweTest, MembersHaveALimitInTheMessageAndInItsProtectedHeader) {
  const auto crowd = [](Json& object, int count) {
    for (int i = 0; i < count; ++i) object[std::to_string(i)] = 0;
  };
  Json jwe = Json::parse(Wrap("p", {"ec256.pem"}));  // five members
  crowd(jwe, 1019);
  EXPECT_TRUE(Unwrap(DumpJson(jwe), "ec256.pem").ok());
  jwe["one more"] = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(Unwrap(DumpJson(jwe), "ec256.pem").status()));
  const auto with_header = [&](int count) {  // "alg", "enc", "epk" and its four
    return Unwrap(WithHeader("ec256.pem", [&](Json& header) { crowd(header, count); }), "ec256.pem")
        .status();
  };
  EXPECT_TRUE(absl::IsNotFound(with_header(1024 - 7)));
  EXPECT_TRUE(absl::IsInvalidArgument(with_header(1024 - 6)));
}

TEST(JweTest, RecipientsShareOneContentCipher) {
  const std::vector<std::string> names = {"ec256.pem", "ec384.pem"};
  Json jwe = Json::parse(Wrap("p", names));
  jwe["protected"] = "";
  for (Json& recipient : jwe["recipients"]) recipient["header"]["enc"] = "A256GCM";
  EXPECT_TRUE(absl::IsNotFound(Unwrap(DumpJson(jwe), "ec256.pem").status()));
  jwe["recipients"][1]["header"]["enc"] = "A128GCM";
  EXPECT_TRUE(absl::IsInvalidArgument(Unwrap(DumpJson(jwe), "ec256.pem").status()));
}

TEST(JweTest, LengthAndRecipientsHaveLimits) {
  const std::vector<std::string> most(kMaxJweRecipients, "ec256.pem");
  Json jwe = Json::parse(Wrap("p", most));
  EXPECT_TRUE(Unwrap(DumpJson(jwe), "ec256.pem").ok());
  jwe["recipients"].push_back(jwe["recipients"][0]);
  EXPECT_TRUE(absl::IsInvalidArgument(Unwrap(DumpJson(jwe), "ec256.pem").status()));
  const std::vector<Key> many(kMaxJweRecipients + 1, TestKey("ec256.pem"));
  EXPECT_TRUE(absl::IsInvalidArgument(WrapJwe(AsBytes("p"), many).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(WrapJwe(AsBytes("p"), {}).status()));
  std::string padded = Wrap("p", {"ec256.pem"});
  padded.resize(kMaxJweBytes, ' ');
  EXPECT_TRUE(Unwrap(padded, "ec256.pem").ok());
  padded.push_back(' ');
  EXPECT_TRUE(absl::IsInvalidArgument(Unwrap(padded, "ec256.pem").status()));
}

}  // namespace
}  // namespace kapsule::crypt
