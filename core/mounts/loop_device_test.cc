#include "core/mounts/loop_device.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <thread>

#include "core/mounts/test_view.h"

namespace kapsule {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LoopDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(geteuid(), 0u) << "loop devices need root";
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
    ASSERT_TRUE(WriteFileAtomic(file(), AsBytes(std::string(1 << 20, 'x')), 0600).ok());
  }
  void TearDown() override {
    EXPECT_THAT(LoopsWith(dir_), IsEmpty());
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  fs::path file() const { return fs::path(dir_) / "file"; }
  UniqueFd Open() const { return OpenFile(file(), O_RDONLY).value(); }
  absl::StatusOr<LoopDevice> Attach() const { return LoopDevice::Attach(Open().get(), dir_); }
  // A device with the mark of dir_ that stays attached when it is closed.
  std::string AttachForEver() const {
    const UniqueFd control = OpenFile("/dev/loop-control", O_RDWR).value();
    const UniqueFd backing = Open();
    for (;;) {
      const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
      const std::string path = fmt::format("/dev/loop{}", number);
      const UniqueFd device = OpenFile(path, O_RDONLY).value();
      loop_config config = {};
      config.fd = static_cast<uint32_t>(backing.get());
      config.info.lo_flags = LO_FLAGS_READ_ONLY;
      dir_.copy(reinterpret_cast<char*>(config.info.lo_file_name), LO_NAME_SIZE - 1);
      if (ioctl(device.get(), LOOP_CONFIGURE, &config) == 0) return path;
    }
  }
  std::string dir_ = "/tmp/kapsule-loop-XXXXXX";
};

std::string Setting(const LoopDevice& loop, const std::string& name) {
  std::ifstream in("/sys/block" + loop.path().substr(4) + "/" + name);
  std::string line;
  std::getline(in, line);
  return line;
}

TEST_F(LoopDeviceTest, IsReadOnlyDirectAndReadsAhead) {
  const auto loop = Attach();
  ASSERT_TRUE(loop.ok()) << loop.status();
  EXPECT_EQ(Setting(*loop, "loop/dio"), "1");
  EXPECT_EQ(Setting(*loop, "loop/autoclear"), "1");
  EXPECT_EQ(Setting(*loop, "ro"), "1");
  EXPECT_EQ(Setting(*loop, "queue/read_ahead_kb"), "2048");
  EXPECT_EQ(Setting(*loop, "queue/max_sectors_kb"), "1024");
  const auto device = OpenFile(loop->path(), O_RDWR);
  ASSERT_TRUE(device.ok());
  EXPECT_EQ(pwrite(device->get(), "y", 1, 0), -1);
  EXPECT_EQ(errno, EPERM);
  char bytes[100] = {};
  EXPECT_EQ(pread(device->get(), bytes, sizeof(bytes), 70'001), 100);
  EXPECT_EQ(std::string(bytes, 100), std::string(100, 'x'));
}

TEST_F(LoopDeviceTest, GoesWithItsLastUser) {
  UniqueFd user;
  {
    const auto loop = Attach();
    ASSERT_TRUE(loop.ok()) << loop.status();
    user = OpenFile(loop->path(), O_RDONLY).value();
  }
  EXPECT_EQ(LoopsWith(dir_).size(), 1u);
  user.reset();
  EXPECT_THAT(LoopsWith(dir_), IsEmpty());
}

TEST_F(LoopDeviceTest, ManyAtOnceGetOneEach) {
  std::vector<std::thread> threads;
  std::atomic<int> failures = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 10; ++n) failures += !Attach().ok();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

TEST_F(LoopDeviceTest, RefusesAFileWithoutDirectIoAndLeavesNothing) {
  const fs::path ram = fs::path(dir_) / "ram";
  ASSERT_TRUE(MakeDirs(ram, 0700).ok());
  ASSERT_EQ(mount("ramfs", ram.c_str(), "ramfs", 0, nullptr), 0);
  ASSERT_TRUE(WriteFileAtomic(ram / "file", AsBytes(std::string(4096, 'x')), 0600).ok());
  {
    const auto file = OpenFile(ram / "file", O_RDONLY);
    ASSERT_TRUE(file.ok());
    const auto loop = LoopDevice::Attach(file->get(), dir_);
    EXPECT_TRUE(absl::IsFailedPrecondition(loop.status())) << loop.status();
    EXPECT_THAT(Message(loop.status()), HasSubstr("no direct I/O"));
  }
  EXPECT_EQ(umount(ram.c_str()), 0);
}

TEST_F(LoopDeviceTest, RefusesWhatIsNoFile) {
  const auto folder = OpenFile(dir_, O_RDONLY | O_DIRECTORY);
  ASSERT_TRUE(folder.ok());
  EXPECT_FALSE(LoopDevice::Attach(folder->get(), dir_).ok());
  EXPECT_FALSE(LoopDevice::Attach(-1, dir_).ok());
}

TEST_F(LoopDeviceTest, ASweepDetachesWhatHasItsMarkAndNothingElse) {
  const std::string left = AttachForEver();
  ASSERT_EQ(LoopsWith(dir_).size(), 1u);
  EXPECT_EQ(DetachLoopDevices("/var/lib/other"), absl::OkStatus());
  EXPECT_EQ(LoopsWith(dir_).size(), 1u);
  EXPECT_EQ(DetachLoopDevices(dir_), absl::OkStatus());
  EXPECT_THAT(LoopsWith(dir_), IsEmpty()) << left;
}

TEST_F(LoopDeviceTest, ASweepSparesWhatIsInUse) {
  const auto loop = Attach();
  ASSERT_TRUE(loop.ok()) << loop.status();
  EXPECT_EQ(DetachLoopDevices(dir_), absl::OkStatus());
  EXPECT_EQ(LoopsWith(dir_).size(), 1u);
  char byte = 0;
  const auto device = OpenFile(loop->path(), O_RDONLY);
  ASSERT_TRUE(device.ok());
  EXPECT_EQ(pread(device->get(), &byte, 1, 4096), 1);
}

}  // namespace
}  // namespace kapsule
