#include "snapshotter/pull_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kapsule::snapshotter {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

oci::Reference Ref(const std::string& name) { return *oci::Reference::Parse(name); }

PullCredentials Password(const std::string& password) {
  return {.place = "r.test/a", .username = "u", .password = Secret::CopyOf(password)};
}

class PullMemoryTest : public testing::Test {
 protected:
  uint64_t Begin(const std::string& image, const std::string& password) {
    return memory_.Begin(Ref(image), Password(password));
  }
  std::string Find(const std::string& image) {
    const std::optional<PullCredentials> found = memory_.Find(Ref(image));
    return found ? std::string(found->password.text()) : "none";
  }
  PullMemory memory_;
};

TEST_F(PullMemoryTest, KnowsARepositoryByAnyTagAndNoOther) {
  memory_.End(Begin("r.test/a/b:1", "one"), true);
  EXPECT_EQ(Find("r.test/a/b:2"), "one");
  EXPECT_EQ(Find("r.test/a/b@sha256:" + std::string(64, 'a')), "one");
  EXPECT_EQ(Find("r.test/a"), "none");
  EXPECT_EQ(Find("r.test/a/b/c"), "none");
  EXPECT_EQ(Find("other.test/a/b:1"), "none");
  EXPECT_EQ(Find("a/b"), "none");
}

TEST_F(PullMemoryTest, APullThatIsUnderWayIsKnownAndForgottenWhereItFails) {
  const uint64_t pull = Begin("r.test/a", "new");
  EXPECT_EQ(Find("r.test/a"), "new");
  memory_.End(pull, false);
  EXPECT_EQ(Find("r.test/a"), "none");
}

TEST_F(PullMemoryTest, OneThatIsUnderWayTakesNothingFromOneThatSucceeded) {
  memory_.End(Begin("r.test/a", "old"), true);
  const uint64_t pull = Begin("r.test/a", "new");
  EXPECT_EQ(Find("r.test/a"), "old");
  memory_.End(pull, true);
  EXPECT_EQ(Find("r.test/a"), "new");
}

TEST_F(PullMemoryTest, ASuccessfulPullEndsAllOlderOnes) {
  memory_.End(Begin("r.test/a", "old"), true);
  memory_.End(Begin("r.test/b", "other"), true);
  const uint64_t slow = Begin("r.test/a", "slow");
  const uint64_t pull = Begin("r.test/a", "new");
  memory_.End(pull, true);
  memory_.End(slow, true);
  EXPECT_EQ(Find("r.test/a"), "new");
  memory_.End(pull, false);  // what has ended cannot end again, but is forgotten
  EXPECT_EQ(Find("r.test/a"), "none");
  EXPECT_EQ(Find("r.test/b"), "other");
}

TEST_F(PullMemoryTest, APullAsNobodyForgetsOnlyWhereItSucceeds) {
  memory_.End(Begin("r.test/a", "old"), true);
  const uint64_t refused = memory_.Begin(Ref("r.test/a"), std::nullopt);
  EXPECT_EQ(Find("r.test/a"), "old");
  memory_.End(refused, false);
  EXPECT_EQ(Find("r.test/a"), "old");
  memory_.End(memory_.Begin(Ref("r.test/a"), std::nullopt), true);
  EXPECT_EQ(Find("r.test/a"), "none");
}

TEST_F(PullMemoryTest, ForgetsTheOldestOfTooMany) {
  for (size_t i = 0; i <= PullMemory::kMaxPulls; ++i)
    memory_.End(Begin(fmt::format("r.test/a{}", i), "x"), true);
  EXPECT_EQ(Find("r.test/a0"), "none");
  EXPECT_EQ(Find("r.test/a1"), "x");
}

class TakeCredentialsTest : public testing::Test {
 protected:
  PullCredentials Take(const std::string& host = "r.test") {
    auto taken = TakeCredentials(auth_, Ref(host + "/a/b:1"));
    EXPECT_TRUE(taken.ok()) << taken.status();
    EXPECT_TRUE(taken->has_value());
    return taken.ok() && taken->has_value() ? **std::move(taken) : PullCredentials{};
  }
  runtime::v1::AuthConfig auth_;
};

TEST_F(TakeCredentialsTest, APasswordComesBeforeATokenAndIsCleansed) {
  auth_.set_username("u");
  auth_.set_password("secret");
  auth_.set_identity_token("token");
  const PullCredentials taken = Take();
  EXPECT_EQ(taken.place, "r.test/a/b");
  EXPECT_EQ(taken.username, "u");
  EXPECT_EQ(taken.password.text(), "secret");
  EXPECT_TRUE(taken.identity_token.empty());
  EXPECT_THAT(auth_.password(), Not(HasSubstr("s")));
}

TEST_F(TakeCredentialsTest, ReadsEveryOtherForm) {
  auth_.set_identity_token("refresh");
  EXPECT_EQ(Take().identity_token.text(), "refresh");
  auth_.Clear();
  auth_.set_auth("dTpwOnc=");  // u:p:w
  const PullCredentials pair = Take();
  EXPECT_EQ(pair.username, "u");
  EXPECT_EQ(pair.password.text(), "p:w");
  auth_.Clear();
  auth_.set_registry_token("bearer");
  EXPECT_EQ(Take().registry_token.text(), "bearer");
}

TEST_F(TakeCredentialsTest, NobodyIsNobody) {
  EXPECT_EQ(TakeCredentials(auth_, Ref("r.test/a"))->has_value(), false);
}

TEST_F(TakeCredentialsTest, OfAnotherServerAreNotTaken) {
  const auto taken_for = [this](const std::string& server, const std::string& host) {
    auth_.set_username("u");
    auth_.set_server_address(server);
    return TakeCredentials(auth_, Ref(host + "/a"))->has_value();
  };
  EXPECT_TRUE(taken_for("r.test", "r.test"));
  EXPECT_TRUE(taken_for("https://r.test:5000/v2/", "r.test:5000"));
  EXPECT_TRUE(taken_for("https://index.docker.io/v1/", "docker.io"));
  EXPECT_FALSE(taken_for("https://r.test.evil/", "r.test"));
  EXPECT_FALSE(taken_for("https://evil/r.test", "r.test"));
  EXPECT_FALSE(taken_for("r.test:5000", "r.test"));
}

TEST_F(TakeCredentialsTest, ErrorsQuoteNothing) {
  for (const std::string& bad :
       {std::string("c2VjcmV0"), std::string("secret!"), std::string((16 << 10) + 1, 's')}) {
    auth_.set_auth(bad);
    const auto taken = TakeCredentials(auth_, Ref("r.test/a"));
    EXPECT_TRUE(absl::IsInvalidArgument(taken.status()));
    EXPECT_THAT(Message(taken.status()), Not(HasSubstr("secret")));
    EXPECT_THAT(Message(taken.status()), Not(HasSubstr("c2Vj")));
  }
}

}  // namespace
}  // namespace kapsule::snapshotter
