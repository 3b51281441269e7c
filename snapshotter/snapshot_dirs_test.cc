#include "snapshotter/snapshot_dirs.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "snapshotter/overlay_mounts.h"
#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

using testing::UnorderedElementsAre;

class SnapshotDirsTest : public testing::Test {
 protected:
  void Place(int64_t id, bool work = true) {
    absl::StatusOr<SnapshotDirs::Staged> staged = dirs_->Stage(work, 0, 0);
    ASSERT_TRUE(staged.ok()) << staged.status();
    ASSERT_TRUE(dirs_->Place(*staged, id).ok());
  }
  TempDir root_;
  std::unique_ptr<SnapshotDirs> dirs_ = *SnapshotDirs::Open(root_.path());
};

TEST_F(SnapshotDirsTest, StagesWithOwnerAndModeWhateverTheUmask) {
  const mode_t before = umask(0077);
  absl::StatusOr<SnapshotDirs::Staged> staged = dirs_->Stage(true, 12, 34);
  umask(before);
  ASSERT_TRUE(staged.ok()) << staged.status();
  ASSERT_TRUE(dirs_->Place(*staged, 7).ok());
  struct stat st;
  ASSERT_EQ(stat(dirs_->Fs(7).c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0755u);
  EXPECT_EQ(st.st_uid, 12u);
  EXPECT_EQ(st.st_gid, 34u);
  EXPECT_TRUE(std::filesystem::is_directory(dirs_->Work(7)));
  ASSERT_EQ(stat((root_ / "l").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0700u);
}

TEST_F(SnapshotDirsTest, WhatIsNotPlacedIsDeleted) {
  { ASSERT_TRUE(dirs_->Stage(false, 0, 0).ok()); }
  EXPECT_THAT(NamesOf(root_ / "l"), UnorderedElementsAre());
}

TEST_F(SnapshotDirsTest, DiscardedDirectoriesGoAtOnceAndAreDeletedLater) {
  Place(1);
  Place(2);
  Write(dirs_->Fs(1) / "file", "x");
  dirs_->Discard(1);
  EXPECT_FALSE(std::filesystem::exists(root_ / "l/1"));
  dirs_->DeleteDiscarded();
  EXPECT_THAT(NamesOf(root_ / "l"), UnorderedElementsAre("2"));
}

TEST_F(SnapshotDirsTest, DeletesInTheBackground) {
  Place(1);
  dirs_->Discard(1);
  for (int i = 0; i < 1000 && !NamesOf(root_ / "l").empty(); ++i) usleep(5'000);
  EXPECT_THAT(NamesOf(root_ / "l"), UnorderedElementsAre());
}

TEST_F(SnapshotDirsTest, SweepsWhatACrashLeftAndNothingElse) {
  Place(1);
  Place(12);
  Place(99);  // its transaction was never committed
  const auto folder = root_ / "l";
  std::filesystem::create_directories(folder / "new-abc/fs");
  std::filesystem::create_directories(folder / "rm-5-1/fs/deep");
  std::filesystem::create_directories(folder / "lost+found");
  EXPECT_THAT(*dirs_->Sweep({1, 11, 12}), UnorderedElementsAre(11));
  dirs_->DeleteDiscarded();
  EXPECT_THAT(NamesOf(folder), UnorderedElementsAre("1", "12", "lost+found"));
}

TEST_F(SnapshotDirsTest, PlacesOverTheDirectoryOfAFailedTransaction) {
  Place(3);
  Write(dirs_->Fs(3) / "old", "x");
  Place(3);
  EXPECT_THAT(NamesOf(dirs_->Fs(3)), UnorderedElementsAre());
}

TEST_F(SnapshotDirsTest, MountsLikeContainerdsOverlayfs) {
  const std::string l = (root_ / "l").string();
  const auto options = [&](int64_t id, bool writable, const std::vector<int64_t>& parents) {
    Mount mount = *SnapshotMount(*dirs_, id, writable, parents);
    std::erase(mount.options, "index=off");
    return std::pair(mount.type + " " + mount.source, mount.options);
  };
  using Options = std::vector<std::string>;
  EXPECT_EQ(options(1, true, {}), std::pair("bind " + l + "/1/fs", Options{"rw", "rbind"}));
  EXPECT_EQ(options(1, false, {}), std::pair("bind " + l + "/1/fs", Options{"ro", "rbind"}));
  EXPECT_EQ(options(2, false, {1}), std::pair("bind " + l + "/1/fs", Options{"ro", "rbind"}));
  EXPECT_EQ(options(3, true, {2, 1}),
            std::pair(std::string("overlay overlay"),
                      Options{"workdir=" + l + "/3/work", "upperdir=" + l + "/3/fs",
                              "lowerdir=" + l + "/2/fs:" + l + "/1/fs"}));
  EXPECT_EQ(
      options(3, false, {2, 1}),
      std::pair(std::string("overlay overlay"), Options{"lowerdir=" + l + "/2/fs:" + l + "/1/fs"}));
}

TEST_F(SnapshotDirsTest, RefusesMoreOptionsThanTheKernelTakes) {
  std::vector<int64_t> parents(128);
  for (size_t i = 0; i < parents.size(); ++i) parents[i] = static_cast<int64_t>(1000 + i);
  EXPECT_TRUE(SnapshotMount(*dirs_, 9999, true, parents).ok());
  while (SnapshotMount(*dirs_, 9999, false, parents).ok()) parents.push_back(1000);
  // "index=off," and "lowerdir=", then "1000/fs:" for each.
  EXPECT_NEAR(static_cast<double>(parents.size()), kMaxMountOptions / 8, 3);
  const absl::Status status = SnapshotMount(*dirs_, 9999, true, parents).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), testing::HasSubstr("mount options, more than 4000"));
  parents.assign(501, 1);
  EXPECT_THAT(Message(SnapshotMount(*dirs_, 2, true, parents).status()),
              testing::HasSubstr("501 layers, more than the 500"));
  parents.pop_back();
  EXPECT_TRUE(SnapshotMount(*dirs_, 2, true, parents).ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
