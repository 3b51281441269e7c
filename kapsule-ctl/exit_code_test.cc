#include "kapsule-ctl/exit_code.h"

#include <gtest/gtest.h>

namespace kapsule::ctl {
namespace {

TEST(ExitCodeTest, TellsWhatWentWrong) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(InvalidArgument("x")), 1);
  EXPECT_EQ(ExitCodeOf(ResourceExhausted("x")), 1);
  EXPECT_EQ(ExitCodeOf(Unauthenticated("x")), 3);
  EXPECT_EQ(ExitCodeOf(PermissionDenied("x")), 3);
  EXPECT_EQ(ExitCodeOf(NotFound("x")), 4);
  EXPECT_EQ(ExitCodeOf(DataLoss("x")), 5);
  EXPECT_EQ(ExitCodeOf(Unavailable("x")), 6);
  EXPECT_EQ(ExitCodeOf(DeadlineExceeded("x")), 6);
  EXPECT_EQ(ExitCodeOf(Cancelled("x")), 130);
}

}  // namespace
}  // namespace kapsule::ctl
