#include "snapshotter/erofs_mount.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include <fstream>
#include <set>

#include "core/base/file.h"
#include "snapshotter/test_view.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;

class ErofsMountTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
    ASSERT_TRUE(MakeErofsImage(image(), "world").ok());
    ASSERT_TRUE(MakeDirs(target(), 0755).ok());
  }
  void TearDown() override {
    EXPECT_TRUE(DetachErofsBelow(dir_).ok());
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  fs::path image() const { return fs::path(dir_) / "image"; }
  fs::path target() const { return fs::path(dir_) / "l/1/fs"; }
  absl::StatusOr<std::string> Hello() const { return ReadFile(target() / "hello", 100); }

  // With a blank, which mountinfo escapes.
  std::string dir_ = "/tmp/kapsule erofs-XXXXXX";
};

std::set<fs::path> Devices() {
  std::set<fs::path> devices;
  for (const auto& entry : fs::directory_iterator("/sys/class/bdi")) {
    if (entry.path().filename().string().starts_with("erofs-")) devices.insert(entry.path());
  }
  return devices;
}

TEST_F(ErofsMountTest, MountsReadOnlyWithoutDevicesAndSetuid) {
  ASSERT_EQ(MountErofs(image(), target()), absl::OkStatus());
  EXPECT_TRUE(IsErofsMount(target()));
  EXPECT_EQ(Hello().value(), "world");
  struct statvfs st;
  ASSERT_EQ(statvfs(target().c_str(), &st), 0);
  for (const unsigned long flag : {ST_RDONLY, ST_NOSUID, ST_NODEV}) EXPECT_NE(st.f_flag & flag, 0u);
  EXPECT_EQ(UnmountErofs(target()), absl::OkStatus());
  EXPECT_FALSE(IsErofsMount(target()));
}

TEST_F(ErofsMountTest, RaisesTheReadAheadOfItsDevice) {
  const std::set<fs::path> before = Devices();
  ASSERT_EQ(MountErofs(image(), target()), absl::OkStatus());
  int found = 0;
  for (const fs::path& device : Devices()) {
    if (before.contains(device)) continue;
    std::ifstream file(device / "read_ahead_kb");
    int kb = 0;
    file >> kb;
    if (kb == kReadAheadKb) ++found;
  }
  EXPECT_GE(found, 1);
}

TEST_F(ErofsMountTest, UnmountsUnderAReaderThatReadsOn) {
  ASSERT_EQ(MountErofs(image(), target()), absl::OkStatus());
  const auto file = FileReader::Open(target() / "hello");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(UnmountErofs(target()), absl::OkStatus());
  EXPECT_FALSE(IsErofsMount(target()));
  std::byte bytes[5];
  ASSERT_EQ((*file)->ReadAt(0, bytes), absl::OkStatus());
  EXPECT_EQ(AsText(bytes), "world");
}

TEST_F(ErofsMountTest, UnmountIsContentWithNothing) {
  EXPECT_EQ(UnmountErofs(target()), absl::OkStatus());
  EXPECT_EQ(UnmountErofs(fs::path(dir_) / "none"), absl::OkStatus());
}

TEST_F(ErofsMountTest, RefusesWhatIsNotErofsAndMountsNothing) {
  ASSERT_TRUE(WriteFileAtomic(image(), AsBytes(std::string(8192, 'x')), 0600).ok());
  EXPECT_FALSE(MountErofs(image(), target()).ok());
  EXPECT_FALSE(IsErofsMount(target()));
  EXPECT_TRUE(absl::IsNotFound(MountErofs(fs::path(dir_) / "none", target())));
}

TEST_F(ErofsMountTest, AMountIsFoundThroughItsFolderWhateverThatIsCalled) {
  const auto folder = OpenFile(target().parent_path(), O_PATH | O_DIRECTORY);
  ASSERT_TRUE(folder.ok());
  const fs::path through = fmt::format("/proc/self/fd/{}/fs", folder->get());
  const fs::path renamed = fs::path(dir_) / "l/rm-1";
  fs::rename(target().parent_path(), renamed);
  ASSERT_EQ(MountErofs(image(), through), absl::OkStatus());
  EXPECT_TRUE(IsErofsMount(renamed / "fs"));
  fs::rename(renamed, fs::path(dir_) / "l/rm-2");
  EXPECT_EQ(UnmountErofs(through), absl::OkStatus());
  EXPECT_FALSE(IsErofsMount(fs::path(dir_) / "l/rm-2/fs"));
}

TEST_F(ErofsMountTest, RefusesAViewThatIsALinkOrNoFile) {
  const fs::path link = fs::path(dir_) / "link";
  fs::create_symlink(image(), link);
  const fs::path pipe = fs::path(dir_) / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const fs::path device = fs::path(dir_) / "device";
  ASSERT_EQ(mknod(device.c_str(), S_IFBLK | 0600, makedev(7, 0)), 0);
  for (const fs::path& view : {link, pipe, device, target()}) {
    const absl::Status status = MountErofs(view, target());
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << view << status;
    EXPECT_FALSE(IsErofsMount(target()));
  }
}

TEST_F(ErofsMountTest, RefusesAViewOfAnotherFileSystem) {
  const fs::path view = fs::path(dir_) / "view";
  ASSERT_TRUE(WriteFileAtomic(view, {}, 0600).ok());
  const fs::path other = fs::path(dir_) / "other";
  ASSERT_TRUE(MakeDirs(other, 0700).ok());
  ASSERT_EQ(mount("tmpfs", other.c_str(), "tmpfs", 0, "size=1m"), 0);
  fs::copy(image(), other / "image");
  ASSERT_EQ(mount((other / "image").c_str(), view.c_str(), nullptr, MS_BIND, nullptr), 0);
  const absl::Status status = MountErofs(view, target());
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_EQ(umount(view.c_str()), 0);
  EXPECT_EQ(umount(other.c_str()), 0);
}

TEST_F(ErofsMountTest, DetachesWhatIsBelowAndNothingElse) {
  const fs::path sibling = fs::path(dir_) / "l2/1/fs";
  const fs::path other = fs::path(dir_) / "l/2/fs";
  ASSERT_TRUE(MakeDirs(sibling, 0755).ok());
  ASSERT_TRUE(MakeDirs(other, 0755).ok());
  ASSERT_EQ(MountErofs(image(), target()), absl::OkStatus());
  ASSERT_EQ(MountErofs(image(), target()), absl::OkStatus());  // twice at one place
  ASSERT_EQ(MountErofs(image(), sibling), absl::OkStatus());
  ASSERT_EQ(mount("tmpfs", other.c_str(), "tmpfs", 0, "size=64k"), 0);
  EXPECT_EQ(DetachErofsBelow(fs::path(dir_) / "l"), absl::OkStatus());
  EXPECT_FALSE(fs::exists(target() / "hello"));
  EXPECT_TRUE(IsErofsMount(sibling));
  EXPECT_EQ(umount(other.c_str()), 0);  // still there: not of our type
}

TEST_F(ErofsMountTest, DetachSaysThatTheFolderIsMissing) {
  EXPECT_TRUE(absl::IsNotFound(DetachErofsBelow(fs::path(dir_) / "none")));
}

}  // namespace
}  // namespace kapsule::snapshotter
