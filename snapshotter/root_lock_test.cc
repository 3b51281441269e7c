#include "snapshotter/root_lock.h"

#include <gmock/gmock.h>

#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

TEST(RootLockTest, TwoNeverShareARootAndTheMessageNamesTheOther) {
  TempDir dir;
  const absl::StatusOr<RootLock> first = RootLock::Take(dir / "root");
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::StatusOr<RootLock> second = RootLock::Take(dir / "root");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Message(second.status()),
              testing::AllOf(testing::HasSubstr("process " + std::to_string(getpid())),
                             testing::HasSubstr("--root")));
  EXPECT_TRUE(RootLock::Take(dir / "other").ok());
}

TEST(RootLockTest, IsFreeAgainAtTheEnd) {
  TempDir dir;
  { ASSERT_TRUE(RootLock::Take(dir.path()).ok()); }
  EXPECT_TRUE(RootLock::Take(dir.path()).ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
