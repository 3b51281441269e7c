#include "core/registry/challenge.h"

#include <gtest/gtest.h>

namespace kapsule::registry {
namespace {

TEST(ChallengeTest, ReadsWhatRegistriesSend) {
  const auto challenges =
      ParseChallenges(R"(Bearer realm="https://auth.docker.io/token",service="registry.docker.io",)"
                      R"(scope="repository:a/b:pull,push")");
  ASSERT_EQ(challenges.size(), 1u);
  EXPECT_EQ(challenges[0].scheme, "bearer");
  EXPECT_EQ(challenges[0].params.at("realm"), "https://auth.docker.io/token");
  EXPECT_EQ(challenges[0].params.at("service"), "registry.docker.io");
  EXPECT_EQ(challenges[0].params.at("scope"), "repository:a/b:pull,push");
}

TEST(ChallengeTest, ReadsSeveralInOneHeader) {
  const auto challenges = ParseChallenges(R"(BASIC Realm = "a \" b" , ,Bearer realm=x)");
  ASSERT_EQ(challenges.size(), 2u);
  EXPECT_EQ(challenges[0].scheme, "basic");
  EXPECT_EQ(challenges[0].params.at("realm"), "a \" b");
  EXPECT_EQ(challenges[1].params.at("realm"), "x");
}

TEST(ChallengeTest, EveryTruncationIsReadAsFarAsItGoes) {
  const std::string text = R"(Bearer realm="https://a/b",service="c")";
  for (size_t length = 1; length < text.size(); ++length) {
    const auto challenges = ParseChallenges(std::string_view(text).substr(0, length));
    ASSERT_FALSE(challenges.empty()) << length;
    EXPECT_EQ(challenges[0].scheme, std::string("bearer").substr(0, length));
    // A value counts once its quote is closed.
    EXPECT_EQ(challenges[0].params.contains("realm"), length >= text.find(',')) << length;
  }
  EXPECT_TRUE(ParseChallenges("").empty());
  EXPECT_TRUE(ParseChallenges("=x").empty());
  EXPECT_TRUE(ParseChallenges("\"Bearer\"").empty());
}

}  // namespace
}  // namespace kapsule::registry
