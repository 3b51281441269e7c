#include "core/mounts/mountinfo.h"

#include <gtest/gtest.h>

namespace kapsule {
namespace {

TEST(MountInfoTest, TakesAnyNumberOfOptionalFields) {
  for (const std::string optional : {"", "shared:1 ", "shared:1 master:2 "}) {
    const auto mount = ParseMountInfo("36 35 98:0 /mnt1 /mnt2 rw,noatime " + optional +
                                      "- fuse.kapsule kapsule rw,user_id=0");
    ASSERT_TRUE(mount.has_value());
    EXPECT_EQ(mount->device, "98:0");
    EXPECT_EQ(mount->point, "/mnt2");
    EXPECT_EQ(mount->type, "fuse.kapsule");
  }
}

TEST(MountInfoTest, PathsAreUnescaped) {
  const auto mount = ParseMountInfo(R"(1 2 0:3 / /a\040b\134\011c\12\9 rw - erofs x ro)");
  ASSERT_TRUE(mount.has_value());
  EXPECT_EQ(mount->point, "/a b\\\tc\\12\\9");
}

TEST(MountInfoTest, RefusesWhatIsNoLineOfIt) {
  for (const char* line : {"", "1 2 0:3", "1 2 0:3 / /a rw", "1 2 0:3 / /a rw -"})
    EXPECT_FALSE(ParseMountInfo(line).has_value()) << line;
}

TEST(MountInfoTest, FindsTheRootAndProc) {
  const auto mounts = ReadMountInfo();
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  bool root = false, proc = false;
  for (const MountInfo& mount : *mounts) {
    root |= mount.point == "/";
    proc |= mount.point == "/proc" && mount.type == "proc";
  }
  EXPECT_TRUE(root && proc);
}

}  // namespace
}  // namespace kapsule
