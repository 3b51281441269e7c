#include "core/base/json.h"

#include <gtest/gtest.h>

namespace kapsule {
namespace {

TEST(JsonTest, RefusesWhatCannotBeMeant) {
  EXPECT_FALSE(ParseJson("{", 100).ok());
  EXPECT_FALSE(ParseJson("", 100).ok());
  EXPECT_FALSE(ParseJson("{} x", 100).ok());
  EXPECT_FALSE(ParseJson(R"({"a":1,"a":2})", 100).ok());
  EXPECT_FALSE(ParseJson(R"("0123456789")", 5).ok());
  EXPECT_FALSE(ParseJson("\"\xff\"", 100).ok());
  EXPECT_FALSE(ParseJson(std::string(100000, '['), 1 << 20).ok());
  EXPECT_TRUE(ParseJson(R"({"a":{"a":2},"b":[{"a":1},{"a":1}]})", 100).ok());
}

TEST(JsonTest, ManyMembersTakeLinearTime) {
  // Quadratic, this ran for minutes.
  std::string text = "{";
  for (int i = 0; i < 300'000; ++i) text += fmt::format("{}\"k{}\":{}", i ? "," : "", i, i);
  const auto json = ParseJson(text + "}", 8 << 20);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(json->size(), 300'000u);
  EXPECT_EQ(UintMember(*json, "k299999").value(), 299'999u);
}

TEST(JsonTest, ValuesComeBackAsWritten) {
  const std::string text =
      R"({"z":[1,-2,0.5,true,false,null,"a\n\u00e9",[],{}],"a":{"b":[{"c":[[1]]}]},"":""})";
  EXPECT_EQ(DumpJson(ParseJson(text, 1000).value()), DumpJson(Json::parse(text)));
  EXPECT_EQ(ParseJson("3", 10).value(), 3);
}

TEST(JsonTest, MembersAreTyped) {
  const Json json = ParseJson(R"({"s":"x","n":3,"m":-3,"o":{},"a":[],"z":null})", 100).value();
  EXPECT_EQ(StringMember(json, "s").value(), "x");
  EXPECT_EQ(UintMember(json, "n").value(), 3u);
  EXPECT_FALSE(UintMember(json, "m").ok());
  EXPECT_FALSE(StringMember(json, "n").ok());
  EXPECT_FALSE(StringMember(json, "missing").ok());
  EXPECT_EQ(OptionalString(json, "z").value(), std::nullopt);
  EXPECT_FALSE(OptionalString(json, "o").ok());
  EXPECT_TRUE(ObjectMember(json, "o").ok());
  EXPECT_FALSE(ObjectMember(json, "a").ok());
  EXPECT_TRUE(ArrayMember(json, "a").ok());
  EXPECT_EQ(FindMember(Json("text"), "a"), nullptr);
}

TEST(JsonTest, KeepsTheOrderOfMembers) {
  EXPECT_EQ(DumpJson(ParseJson(R"({"z":1, "a":2})", 100).value()), R"({"z":1,"a":2})");
}

}  // namespace
}  // namespace kapsule
