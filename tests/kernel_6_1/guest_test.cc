// What a node does on a kernel without file-backed EROFS. Runs in the virtual
// machine of tests/kernel_6_1/run, with the real kapsule-fuse.
#include <absl/time/clock.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "core/mounts/erofs_mount.h"
#include "core/mounts/test_view.h"
#include "snapshotter/data_plane_test_node.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using blob::MakeTestFile;
using testing::StoredLayer;

constexpr char kWeights[] = "weights.bin";

class GuestTest : public testing::DataPlaneTest {
 protected:
  void SetUp() override {
    DataPlaneTest::SetUp();
    StartPlane();
    ASSERT_NE(plane_, nullptr);
    std::vector<blob::TestFile> files = blob::SampleFiles();
    files.push_back(MakeTestFile(kWeights, content_));
    layer_ = Store(files, key_);
    const auto view = Open(layer_);
    ASSERT_TRUE(view.ok()) << view.status();
    ASSERT_TRUE(MakeDirs(tree(), 0755).ok());
    ASSERT_EQ(mounter_.Mount(*view, tree()), absl::OkStatus());
  }
  void TearDown() override {
    EXPECT_EQ(UnmountErofs(tree()), absl::OkStatus());
    DataPlaneTest::TearDown();
    EXPECT_THAT(LoopsWith("/"), ::testing::IsEmpty());
  }
  fs::path tree() const { return folder_ / "tree"; }

  const std::string content_ = blob::TestBytes((4 << 20) + 17, 3);
  StoredLayer layer_;
  ErofsMounter mounter_;
};

TEST_F(GuestTest, AutoTakesALoopDeviceAndEveryWayToReadGivesTheSameBytes) {
  EXPECT_EQ(mounter_.way(), ViewMount::kLoop);
  EXPECT_EQ(LoopsWith("/").size(), 1u);
  EXPECT_EQ(testing::CompareTree(tree(), layer_.layer), "");

  const auto fd = OpenFile(tree() / kWeights, O_RDONLY | O_DIRECT);
  ASSERT_TRUE(fd.ok()) << fd.status();
  alignas(4096) static char piece[1 << 20];
  ASSERT_EQ(pread(fd->get(), piece, sizeof(piece), 1 << 20), 1 << 20);
  EXPECT_EQ(std::memcmp(piece, content_.data() + (1 << 20), sizeof(piece)), 0);

  ASSERT_EQ(posix_fadvise(fd->get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  void* pages = mmap(nullptr, content_.size(), PROT_READ, MAP_SHARED, fd->get(), 0);
  ASSERT_NE(pages, MAP_FAILED);
  EXPECT_EQ(std::memcmp(pages, content_.data(), content_.size()), 0);
  munmap(pages, content_.size());
}

// Reads all of the file from the disk again and again, by both ways.
class Reader {
 public:
  Reader(const fs::path& file, const std::string& content)
      : fd_(OpenFile(file, O_RDONLY).value()), content_(content) {
    thread_ = std::thread([this] {
      while (!stopping_) Pass();
    });
  }
  ~Reader() {
    stopping_ = true;
    thread_.join();
  }
  int passes() const { return passes_; }
  int errors() const { return errors_; }

 private:
  void Pass() {
    posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
    std::string piece(256 << 10, '\0');
    for (size_t at = 0; at < content_.size() / 2; at += piece.size()) {
      const ssize_t n = pread(fd_.get(), piece.data(), piece.size(), static_cast<off_t>(at));
      errors_ += n <= 0 || content_.compare(at, static_cast<size_t>(n), piece.data(), n) != 0;
    }
    void* pages = mmap(nullptr, content_.size(), PROT_READ, MAP_SHARED, fd_.get(), 0);
    errors_ += pages == MAP_FAILED || std::memcmp(pages, content_.data(), content_.size()) != 0;
    if (pages != MAP_FAILED) munmap(pages, content_.size());
    ++passes_;
  }

  const UniqueFd fd_;
  const std::string& content_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> passes_ = 0, errors_ = 0;
  std::thread thread_;
};

TEST_F(GuestTest, ReadsGoOnWhileKapsuleFuseIsKilled) {
  Reader reader(tree() / kWeights, content_);
  for (int i = 0; i < 5; ++i) {
    // At another point of the reader's pass each time.
    absl::SleepFor(absl::Milliseconds(70 * i));
    const pid_t killed = plane_->pid();
    ASSERT_GT(killed, 0);
    const int passes = reader.passes();
    ASSERT_EQ(kill(killed, SIGKILL), 0);
    const absl::Time deadline = absl::Now() + absl::Seconds(120);
    while ((plane_->pid() == killed || !plane_->serving() || reader.passes() < passes + 2) &&
           absl::Now() < deadline)
      absl::SleepFor(absl::Milliseconds(20));
    ASSERT_GE(reader.passes(), passes + 2) << "the reader hangs after kill " << i;
  }
  EXPECT_EQ(reader.errors(), 0);
  EXPECT_TRUE(IsErofsMount(tree()));
}

TEST_F(GuestTest, AnOverlayRefusesChangesAndCopiesNothingUp) {
  for (const char* name : {"upper", "work", "overlay"})
    ASSERT_TRUE(MakeDirs(folder_ / name, 0755).ok());
  const std::string options =
      fmt::format("lowerdir={0}/tree,upperdir={0}/upper,workdir={0}/work", folder_.string());
  const fs::path overlay = folder_ / "overlay";
  ASSERT_EQ(mount("overlay", overlay.c_str(), "overlay", 0, options.c_str()), 0) << strerror(errno);
  const std::string file = overlay / kWeights, other = overlay / "other";
  const timespec times[2] = {{1, 0}, {1, 0}};
  EXPECT_NE(chmod(file.c_str(), 0600), 0);
  EXPECT_NE(chown(file.c_str(), 1, 1), 0);
  EXPECT_NE(utimensat(AT_FDCWD, file.c_str(), times, 0), 0);
  EXPECT_NE(truncate(file.c_str(), 1), 0);
  EXPECT_NE(setxattr(file.c_str(), "user.x", "y", 1, 0), 0);
  EXPECT_NE(rename(file.c_str(), other.c_str()), 0);
  EXPECT_NE(link(file.c_str(), other.c_str()), 0);
  EXPECT_NE(unlink(file.c_str()), 0);
  EXPECT_FALSE(UniqueFd(open(file.c_str(), O_RDWR | O_CLOEXEC)).valid());
  EXPECT_EQ(testing::CompareTree(overlay, layer_.layer), "");
  for (const auto& entry : fs::recursive_directory_iterator(folder_ / "upper"))
    EXPECT_TRUE(entry.is_directory()) << entry.path() << " was copied up";
  EXPECT_EQ(umount(overlay.c_str()), 0);
}

}  // namespace
}  // namespace kapsule::snapshotter
