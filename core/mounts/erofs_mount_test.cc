#include "core/mounts/erofs_mount.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <set>

#include "core/base/file.h"
#include "core/mounts/loop_device.h"
#include "core/mounts/test_view.h"

namespace kapsule {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ErofsMountTest : public ::testing::TestWithParam<ViewMount> {
 protected:
  void SetUp() override {
    ASSERT_EQ(geteuid(), 0u) << "this test mounts: run it as root";
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
    ASSERT_TRUE(MakeErofsImage(image(), "world").ok());
    ASSERT_TRUE(MakeDirs(target(), 0755).ok());
  }
  void TearDown() override {
    EXPECT_TRUE(DetachErofsBelow(dir_).ok());
    EXPECT_THAT(LoopsWith(dir_), ::testing::IsEmpty());
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  fs::path image() const { return fs::path(dir_) / "image"; }
  fs::path target() const { return fs::path(dir_) / "l/1/fs"; }
  absl::Status MountImage() { return mounter_.Mount(image(), target()); }
  fs::path overlay() const { return fs::path(dir_) / "overlay"; }
  void MountOverlay() {
    const fs::path lower = fs::path(dir_) / "lower";
    for (const fs::path& made : {overlay(), lower}) ASSERT_TRUE(MakeDirs(made, 0755).ok());
    const std::string options = fmt::format("lowerdir={}:{}", target().string(), lower.string());
    ASSERT_EQ(mount("overlay", overlay().c_str(), "overlay", MS_RDONLY, options.c_str()), 0)
        << strerror(errno);
  }
  absl::StatusOr<std::string> Hello() const { return ReadFile(target() / "hello", 100); }

  // With a blank, which mountinfo escapes.
  std::string dir_ = "/tmp/kapsule erofs-XXXXXX";
  ErofsMounter mounter_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Ways, ErofsMountTest,
                         ::testing::Values(ViewMount::kFile, ViewMount::kLoop),
                         [](const auto& info) {
                           return info.param == ViewMount::kFile ? "File" : "Loop";
                         });

TEST_P(ErofsMountTest, MountsReadOnlyWithoutDevicesAndSetuid) {
  ASSERT_EQ(MountImage(), absl::OkStatus());
  EXPECT_TRUE(IsErofsMount(target()));
  EXPECT_EQ(Hello().value(), "world");
  struct statvfs st;
  ASSERT_EQ(statvfs(target().c_str(), &st), 0);
  for (const unsigned long flag : {ST_RDONLY, ST_NOSUID, ST_NODEV}) EXPECT_NE(st.f_flag & flag, 0u);
  EXPECT_EQ(LoopsWith(dir_).size(), GetParam() == ViewMount::kLoop ? 1u : 0u);
  EXPECT_EQ(UnmountErofs(target()), absl::OkStatus());
  EXPECT_FALSE(IsErofsMount(target()));
  EXPECT_THAT(LoopsWith(dir_), ::testing::IsEmpty());
}

// Files below /sys/class/bdi of file-backed mounts, or of the device.
std::set<fs::path> ReadAheadFiles(const std::string& dir) {
  std::set<fs::path> files;
  for (const auto& entry : fs::directory_iterator("/sys/class/bdi")) {
    if (entry.path().filename().string().starts_with("erofs-"))
      files.insert(entry.path() / "read_ahead_kb");
  }
  for (const fs::path& loop : LoopsWith(dir)) files.insert(loop / "queue/read_ahead_kb");
  return files;
}

int NumberIn(const fs::path& path) {
  std::ifstream file(path);
  int number = -1;
  file >> number;
  return number;
}

TEST_P(ErofsMountTest, RaisesTheReadAheadOfItsDevice) {
  const std::set<fs::path> before = ReadAheadFiles(dir_);
  ASSERT_EQ(MountImage(), absl::OkStatus());
  int found = 0;
  for (const fs::path& file : ReadAheadFiles(dir_))
    found += !before.contains(file) && NumberIn(file) == kReadAheadKb;
  EXPECT_GE(found, 1);
}

TEST_P(ErofsMountTest, UnmountsUnderAReaderThatReadsOn) {
  ASSERT_EQ(MountImage(), absl::OkStatus());
  const auto file = FileReader::Open(target() / "hello");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(UnmountErofs(target()), absl::OkStatus());
  EXPECT_FALSE(IsErofsMount(target()));
  std::byte bytes[5];
  ASSERT_EQ((*file)->ReadAt(0, bytes), absl::OkStatus());
  EXPECT_EQ(AsText(bytes), "world");
}

TEST_P(ErofsMountTest, DirectIoThroughAnOverlayTakesALoopDevice) {
  ASSERT_EQ(MountImage(), absl::OkStatus());
  MountOverlay();
  for (const fs::path& root : {target(), overlay()}) {
    const UniqueFd fd(open((root / "hello").c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
    if (GetParam() == ViewMount::kFile) {
      EXPECT_FALSE(fd.valid());
      EXPECT_EQ(errno, EINVAL);
      continue;
    }
    alignas(4096) char bytes[4096];
    EXPECT_EQ(read(fd.get(), bytes, sizeof(bytes)), 5) << root << strerror(errno);
    EXPECT_EQ(std::string(bytes, 5), "world");
  }
  EXPECT_EQ(umount(overlay().c_str()), 0);
}

TEST_P(ErofsMountTest, AnOverlayReadsOnWhenTheViewIsUnmounted) {
  ASSERT_EQ(MountImage(), absl::OkStatus());
  MountOverlay();
  EXPECT_EQ(UnmountErofs(target()), absl::OkStatus());
  EXPECT_EQ(DetachLoopsOfViews(dir_), absl::OkStatus());  // nor does a sweep
  EXPECT_EQ(ReadFile(overlay() / "hello", 100).value(), "world");
  EXPECT_EQ(umount(overlay().c_str()), 0);
}

TEST_P(ErofsMountTest, UnmountIsContentWithNothing) {
  EXPECT_EQ(UnmountErofs(target()), absl::OkStatus());
  EXPECT_EQ(UnmountErofs(fs::path(dir_) / "none"), absl::OkStatus());
  EXPECT_FALSE(IsErofsMount(fs::path(dir_) / "none/fs"));
}

TEST_P(ErofsMountTest, RefusesWhatIsNotErofsAndMountsNothing) {
  ASSERT_TRUE(WriteFileAtomic(image(), AsBytes(std::string(8192, 'x')), 0600).ok());
  const absl::Status status = MountImage();
  EXPECT_THAT(Message(status), HasSubstr(image())) << status;
  EXPECT_FALSE(IsErofsMount(target()));
  EXPECT_THAT(LoopsWith(dir_), ::testing::IsEmpty());
  EXPECT_TRUE(absl::IsNotFound(mounter_.Mount(fs::path(dir_) / "none", target())));
}

TEST_P(ErofsMountTest, AMountIsFoundThroughItsFolderWhateverThatIsCalled) {
  const auto folder = OpenFile(target().parent_path(), O_PATH | O_DIRECTORY);
  ASSERT_TRUE(folder.ok());
  const fs::path through = fmt::format("/proc/self/fd/{}/fs", folder->get());
  const fs::path renamed = fs::path(dir_) / "l/rm-1";
  fs::rename(target().parent_path(), renamed);
  ASSERT_EQ(mounter_.Mount(image(), through), absl::OkStatus());
  EXPECT_TRUE(IsErofsMount(renamed / "fs"));
  EXPECT_TRUE(IsErofsMount(through));
  fs::rename(renamed, fs::path(dir_) / "l/rm-2");
  EXPECT_EQ(UnmountErofs(through), absl::OkStatus());
  EXPECT_FALSE(IsErofsMount(fs::path(dir_) / "l/rm-2/fs"));
}

TEST_P(ErofsMountTest, RefusesAViewThatIsALinkOrNoFile) {
  const fs::path link = fs::path(dir_) / "link";
  fs::create_symlink(image(), link);
  const fs::path pipe = fs::path(dir_) / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const fs::path device = fs::path(dir_) / "device";
  ASSERT_EQ(mknod(device.c_str(), S_IFBLK | 0600, makedev(7, 0)), 0);
  for (const fs::path& view : {link, pipe, device, target()}) {
    const absl::Status status = mounter_.Mount(view, target());
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << view << status;
    EXPECT_FALSE(IsErofsMount(target()));
  }
}

TEST_P(ErofsMountTest, RefusesAViewOfAnotherFileSystem) {
  const fs::path view = fs::path(dir_) / "view";
  ASSERT_TRUE(WriteFileAtomic(view, {}, 0600).ok());
  const fs::path other = fs::path(dir_) / "other";
  ASSERT_TRUE(MakeDirs(other, 0700).ok());
  ASSERT_EQ(mount("tmpfs", other.c_str(), "tmpfs", 0, "size=1m"), 0);
  fs::copy(image(), other / "image");
  ASSERT_EQ(mount((other / "image").c_str(), view.c_str(), nullptr, MS_BIND, nullptr), 0);
  const absl::Status status = mounter_.Mount(view, target());
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_EQ(umount(view.c_str()), 0);
  EXPECT_EQ(umount(other.c_str()), 0);
}

TEST_P(ErofsMountTest, DetachesWhatIsBelowAndNothingElse) {
  const fs::path sibling = fs::path(dir_) / "l2/1/fs";
  const fs::path other = fs::path(dir_) / "l/2/fs";
  ASSERT_TRUE(MakeDirs(sibling, 0755).ok());
  ASSERT_TRUE(MakeDirs(other, 0755).ok());
  ASSERT_EQ(MountImage(), absl::OkStatus());
  ASSERT_EQ(MountImage(), absl::OkStatus());  // twice at one place
  ASSERT_EQ(mounter_.Mount(image(), sibling), absl::OkStatus());
  ASSERT_EQ(mount("tmpfs", other.c_str(), "tmpfs", 0, "size=64k"), 0);
  EXPECT_THAT(ErofsMountsBelow(fs::path(dir_) / "l").value(),
              ::testing::ElementsAre(target(), target()));
  EXPECT_EQ(DetachErofsBelow(fs::path(dir_) / "l"), absl::OkStatus());
  EXPECT_FALSE(fs::exists(target() / "hello"));
  EXPECT_TRUE(IsErofsMount(sibling));
  EXPECT_FALSE(IsErofsMount(other));
  EXPECT_EQ(umount(other.c_str()), 0);  // still there: not of our type
}

TEST_P(ErofsMountTest, DetachSaysThatTheFolderIsMissing) {
  EXPECT_TRUE(absl::IsNotFound(DetachErofsBelow(fs::path(dir_) / "none")));
}

class AutoMountTest : public ErofsMountTest {};
INSTANTIATE_TEST_SUITE_P(Auto, AutoMountTest, ::testing::Values(ViewMount::kAuto));

TEST_P(AutoMountTest, SettlesForWhatWorks) {
  EXPECT_EQ(mounter_.way(), ViewMount::kAuto);
  ASSERT_EQ(MountImage(), absl::OkStatus());
  EXPECT_EQ(mounter_.way(), LoopsWith(dir_).empty() ? ViewMount::kFile : ViewMount::kLoop);
  EXPECT_EQ(Hello().value(), "world");
}

TEST_P(AutoMountTest, ABadViewSettlesNothing) {
  ASSERT_TRUE(WriteFileAtomic(image(), AsBytes(std::string(8192, 'x')), 0600).ok());
  const absl::Status status = MountImage();
  EXPECT_THAT(Message(status), HasSubstr("by loop device: Invalid argument")) << status;
  EXPECT_EQ(mounter_.way(), ViewMount::kAuto);
}

TEST(ParseViewMountTest, KnowsThreeWords) {
  EXPECT_EQ(*ParseViewMount("auto"), ViewMount::kAuto);
  EXPECT_EQ(*ParseViewMount("file"), ViewMount::kFile);
  EXPECT_EQ(*ParseViewMount("loop"), ViewMount::kLoop);
  EXPECT_THAT(Message(ParseViewMount("Loop").status()), HasSubstr("\"Loop\", not auto"));
}

}  // namespace
}  // namespace kapsule
