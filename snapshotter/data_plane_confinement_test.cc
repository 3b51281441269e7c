// What kapsule-fuse can see, call and show while it serves. Needs root.
#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "core/crypt/key_scan.h"
#include "snapshotter/data_plane_test_node.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using blob::MakeTestFile;
using blob::SampleFiles;
using blob::TestBytes;
using crypt::testing::KeyScan;
using testing::Reader;
using testing::StatusLine;
using testing::StoredLayer;
using ::testing::UnorderedElementsAre;

class ConfinementTest : public testing::DataPlaneTest {
 protected:
  void SetUp() override {
    DataPlaneTest::SetUp();
    marker_ = fmt::format("kapsule-marker-{}", getpid());
    ASSERT_EQ(setenv("KAPSULE_MARKER", marker_.c_str(), 1), 0);
    StartPlane();
  }
  void TearDown() override {
    unsetenv("KAPSULE_MARKER");
    DataPlaneTest::TearDown();
  }
  void OpenAndMount(const StoredLayer& layer) {
    const auto view = Open(layer);
    ASSERT_TRUE(view.ok()) << view.status();
    auto mounted = Mount(*view);
    ASSERT_TRUE(mounted.ok()) << mounted.status();
    mounts_.push_back(*std::move(mounted));
  }
  KeyScan ScanOf(const StoredLayer& stored) const {
    KeyScan scan;
    const archive::IndexHeader& header = stored.layer.header;
    scan.AddLayer(stored.layer.key, header.salt, header.chunk_size, header.covered_length);
    scan.Add("marker", AsBytes(marker_));
    return scan;
  }
  void ExpectNoKey(const StoredLayer& layer) {
    const KeyScan::Found found = ScanOf(layer).Run(plane_->pid());
    EXPECT_EQ(found.names, std::set<std::string>{"marker"})
        << fmt::format("{}", fmt::join(found.places, ", "));
    EXPECT_GT(found.hidden, 0u) << "no memfd_secret memory";
    EXPECT_GT(found.readable, 4u << 20);
  }

  std::string marker_;  // in the environment, which is memory
  std::vector<std::unique_ptr<testing::ErofsMount>> mounts_;
};

TEST_F(ConfinementTest, RootFindsNoKeyInMemoryWhileLayersAreRead) {
  auto files = SampleFiles();
  files.push_back(MakeTestFile("weights", TestBytes(12 << 20, 5)));
  const StoredLayer a = Store(files, key_), b = Store(SampleFiles(), key_, true, 16 * 1024);
  OpenAndMount(a);
  OpenAndMount(b);
  {
    const Reader one(mounts_[0]->path(), a.layer), other(mounts_[1]->path(), b.layer);
    for (int round = 0; round < 5; ++round) {
      const absl::Time deadline = absl::Now() + absl::Seconds(20);
      EXPECT_TRUE(plane_->Authorise(a.digest, a.annotations, deadline).ok());
      EXPECT_TRUE(Open(b).ok());
      EXPECT_TRUE(one.WaitForRounds(1));
      ExpectNoKey(a);
      ExpectNoKey(b);
    }
    EXPECT_EQ(one.problem(), "");
    EXPECT_EQ(other.problem(), "");
  }
  mounts_.clear();
}

TEST_F(ConfinementTest, TheSuccessorOfAKilledProcessIsConfinedAlike) {
  const StoredLayer layer = Store(SampleFiles(), key_);
  OpenAndMount(layer);
  {
    const Reader reader(mounts_[0]->path(), layer.layer);
    for (int round = 0; round < 3; ++round) {
      const pid_t before = plane_->pid();
      testing::SendSignal(before, SIGKILL);
      ASSERT_TRUE(
          testing::Eventually([&] { return plane_->pid() != before && plane_->serving(); }));
      EXPECT_TRUE(reader.WaitForRounds(2));
      EXPECT_EQ(StatusLine(plane_->pid(), "Seccomp"), "2");
      ExpectNoKey(layer);
    }
    EXPECT_EQ(reader.problem(), "");
  }
  mounts_.clear();
}

TEST_F(ConfinementTest, ItSeesTheKeyprovidersFolderAndNoNetwork) {
  const pid_t pid = plane_->pid();
  EXPECT_EQ(StatusLine(pid, "Seccomp"), "2");
  EXPECT_EQ(StatusLine(pid, "Seccomp_filters"), "1");
  std::vector<std::string> points;
  std::ifstream mounts(fmt::format("/proc/{}/mountinfo", pid));
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    std::string skip, point, options;
    words >> skip >> skip >> skip >> skip >> point >> options;
    EXPECT_TRUE(options.starts_with("ro,nosuid,nodev,noexec")) << line;
    points.push_back(point);
  }
  const fs::path folder = Options().keyprovider_socket.parent_path();
  EXPECT_THAT(points, UnorderedElementsAre("/", folder.string()));
  const fs::path root = fmt::format("/proc/{}/root", pid);
  EXPECT_TRUE(fs::exists(root.string() + Options().keyprovider_socket.string()));
  EXPECT_FALSE(fs::exists(root / "proc"));
  EXPECT_FALSE(fs::exists(root / "etc"));
  std::ifstream devices(fmt::format("/proc/{}/net/dev", pid));
  int lines = 0;
  for (std::string line; std::getline(devices, line);) ++lines;
  EXPECT_EQ(lines, 3);  // two of headings, and lo
}

}  // namespace
}  // namespace kapsule::snapshotter
