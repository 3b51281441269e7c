#include "core/daemon/user.h"

#include <gtest/gtest.h>

namespace kapsule::daemon {
namespace {

TEST(LookUpUserTest, NamesAndNumbersFindTheAccount) {
  EXPECT_EQ(LookUpUser("root").value().uid, 0u);
  EXPECT_EQ(LookUpUser("0").value().name, "root");
  EXPECT_EQ(LookUpUser("daemon").value().gid, LookUpUser("daemon").value().uid);
}

TEST(LookUpUserTest, ANumberNeedsNoAccount) {
  const User user = LookUpUser("3999999999").value();
  EXPECT_EQ(user.uid, 3999999999u);
  EXPECT_EQ(user.name, "");
}

TEST(LookUpUserTest, OtherWordsAreErrors) {
  EXPECT_TRUE(absl::IsNotFound(LookUpUser("no-such-user").status()));
  EXPECT_TRUE(absl::IsNotFound(LookUpUser("12x").status()));
  EXPECT_TRUE(absl::IsNotFound(LookUpUser("-1").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(LookUpUser("").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(LookUpUser("4294967295").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(LookUpUser("4294967296").status()));
}

}  // namespace
}  // namespace kapsule::daemon
