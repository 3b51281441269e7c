#include "core/base/status.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace kapsule {
namespace {

TEST(StatusTest, AnnotateTellsTheJourney) {
  const absl::Status low = NotFound("no recipient in {} items", 3);
  const absl::Status high = Annotate(low, "unwrap key");
  EXPECT_EQ(high.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Describe(high), "not found: unwrap key: no recipient in 3 items");
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
}

TEST(StatusTest, ErrnoBecomesTheCodeThatCallersAskFor) {
  EXPECT_EQ(ErrnoStatus(ENOENT, "x").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ErrnoStatus(ENOSPC, "x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoStatus(EIO, "x").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Message(ErrnoStatus(ENOENT, "open /x")), "open /x: No such file or directory");
}

}  // namespace
}  // namespace kapsule
