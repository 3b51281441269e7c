#include "core/crypt/secret_json.h"

#include <gtest/gtest.h>

namespace kapsule::crypt {
namespace {

TEST(SecretJsonTest, MembersPointIntoTheText) {
  const std::string text =
      R"( { "a" : "x\"y" , "b":{"c":[1,-2.5e3,true,null]},"n":null, "z":[] } )";
  const std::vector<JsonMember> members = ScanJsonObject(text).value();
  ASSERT_EQ(members.size(), 4u);
  EXPECT_EQ(FindValue(members, "a"), R"("x\"y")");
  EXPECT_EQ(FindValue(members, "b"), R"({"c":[1,-2.5e3,true,null]})");
  EXPECT_EQ(FindValue(members, "n"), std::nullopt);
  EXPECT_EQ(FindValue(members, "z"), "[]");
  EXPECT_GE(members[0].value.data(), text.data());
  EXPECT_LT(members[0].value.data(), text.data() + text.size());
  EXPECT_TRUE(ScanJsonObject("{}").value().empty());
}

TEST(SecretJsonTest, EveryTruncationIsAnError) {
  const std::string text = R"({"a":"b","c":{"d":[1,"\\",true]}})";
  ASSERT_TRUE(ScanJsonObject(text).ok());
  for (size_t size = 0; size < text.size(); ++size)
    EXPECT_TRUE(absl::IsInvalidArgument(ScanJsonObject(text.substr(0, size)).status())) << size;
}

TEST(SecretJsonTest, RefusesWhatIsNotAnObject) {
  for (const char* text : {"", "[]", "1", "null", "{,}", "{\"a\"}", "{\"a\":}", "{\"a\":1,}",
                           "{\"a\":1}x", "{a:1}", "{\"a\":tru}", "{\"a\":[1,]}", "{\"a\":{1:2}}",
                           "{\"a\":\"\n\"}", "{\"a\":1 2}", "{\"a\":1,\"a\":2}", "{\"a\":--}}"})
    EXPECT_TRUE(absl::IsInvalidArgument(ScanJsonObject(text).status())) << text;
}

TEST(SecretJsonTest, DepthMembersAndLengthHaveLimits) {
  const auto nested = [](size_t depth) {
    return "{\"a\":" + std::string(depth, '[') + std::string(depth, ']') + "}";
  };
  EXPECT_TRUE(ScanJsonObject(nested(16)).ok());
  EXPECT_FALSE(ScanJsonObject(nested(17)).ok());
  const auto wide = [](int members) {
    std::string text = "{\"0\":0";
    for (int i = 1; i < members; ++i) text += fmt::format(",\"{}\":0", i);
    return text + "}";
  };
  EXPECT_TRUE(ScanJsonObject(wide(64)).ok());
  EXPECT_FALSE(ScanJsonObject(wide(65)).ok());
  EXPECT_TRUE(ScanJsonObject("{}" + std::string(16 * 1024 - 2, ' ')).ok());
  EXPECT_FALSE(ScanJsonObject("{}" + std::string(16 * 1024 - 1, ' ')).ok());
}

TEST(SecretJsonTest, PlainStringsHaveNoEscapes) {
  EXPECT_EQ(PlainString("\"a/+=\"").value(), "a/+=");
  EXPECT_EQ(PlainString("\"\"").value(), "");
  for (const char* text : {"1", "null", "", "\"", "{}", R"("a\/b")"})
    EXPECT_FALSE(PlainString(text).ok()) << text;
}

}  // namespace
}  // namespace kapsule::crypt
