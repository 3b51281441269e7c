#include "snapshotter/usage.h"

#include <sys/mount.h>
#include <sys/stat.h>

#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

TEST(UsageTest, CountsBlocksAndInodesOfDirectoriesFilesAndLinks) {
  TempDir dir;
  const Usage empty = *DiskUsage(dir.path());
  EXPECT_EQ(empty.inodes, 1u);
  std::filesystem::create_directory(dir / "a");
  Write(dir / "a/file", std::string(100'000, 'x'));
  std::filesystem::create_symlink("/etc", dir / "link");
  std::filesystem::create_hard_link(dir / "a/file", dir / "twin");
  const Usage usage = *DiskUsage(dir.path());
  EXPECT_EQ(usage.inodes, 4u);
  EXPECT_GE(usage.size, empty.size + 100'000);
  EXPECT_LT(usage.size, empty.size + 200'000);
}

TEST(UsageTest, HolesTakeNoSpace) {
  TempDir dir;
  Write(dir / "sparse", "");
  std::filesystem::resize_file(dir / "sparse", 1 << 30);
  EXPECT_LT(DiskUsage(dir.path())->size, 1u << 20);
}

TEST(UsageTest, StaysOnOneFileSystem) {
  TempDir dir;
  const Mounted tmpfs({"tmpfs", "tmpfs", {}}, dir / "mnt");
  Write(tmpfs / "big", std::string(1 << 20, 'x'));
  EXPECT_LT(DiskUsage(dir.path())->size, 1u << 20);
}

TEST(UsageTest, AMissingTreeIsNotFound) {
  EXPECT_EQ(DiskUsage("/tmp/kapsule-no-such-tree").status().code(), absl::StatusCode::kNotFound);
}

TEST(UsageMeterTest, MeasuresAgainAfterAWhileAndWhenForgotten) {
  TempDir dir;
  for (int i = 0; i < 300; ++i) Write(dir / std::to_string(i), "x");
  UsageMeter meter;
  EXPECT_EQ(meter.Measure(1, dir.path())->inodes, 301u);
  Write(dir / "new", "x");
  meter.Forget(1);
  EXPECT_EQ(meter.Measure(1, dir.path())->inodes, 302u);
  Write(dir / "newer", "x");
  for (int i = 0; i < 500 && meter.Measure(1, dir.path())->inodes != 303; ++i) usleep(10'000);
  EXPECT_EQ(meter.Measure(1, dir.path())->inodes, 303u);
}

}  // namespace
}  // namespace kapsule::snapshotter
