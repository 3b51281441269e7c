// Processes that run but do nothing, while containers read. Needs root.
#include <absl/time/clock.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>

#include "snapshotter/data_plane.h"
#include "snapshotter/data_plane_test_node.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using blob::MakeTestFile;
using blob::TestBytes;
using testing::ChildrenNamed;
using testing::ErofsMount;
using testing::Eventually;
using testing::IsAlive;
using testing::Reader;
using testing::SendSignal;
using testing::StoredLayer;

constexpr absl::Duration kStuckAfter = absl::Seconds(1);

class StuckTest : public testing::DataPlaneTest {
 protected:
  void SetUp() override {
    DataPlaneTest::SetUp();
    layer_ = Store({MakeTestFile("weights", TestBytes(8 << 20, 5))}, key_);
  }
  void TearDown() override {
    reader_.reset();
    mount_.reset();
    DataPlaneTest::TearDown();
  }
  DataPlane::Options StuckOptions(absl::Duration stuck_after = kStuckAfter) {
    DataPlane::Options options = Options();
    options.stuck_after = stuck_after;
    options.give_up_after = 6 * kStuckAfter;
    options.settle_after = absl::Milliseconds(300);
    options.on_death = [this] { ++deaths_; };
    options.on_takeover = [this] { ++takeovers_; };
    options.on_settled = [this](const std::vector<std::string>& views) {
      settled_ = views;
      ++settlements_;
    };
    return options;
  }
  void Read() {
    const auto view = Open(layer_);
    ASSERT_TRUE(view.ok()) << view.status();
    auto mounted = Mount(*view);
    ASSERT_TRUE(mounted.ok()) << mounted.status();
    mount_ = *std::move(mounted);
    reader_ = std::make_unique<Reader>(mount_->path(), layer_.layer);
    ExpectReading();
  }
  void ExpectReading() const {
    EXPECT_TRUE(reader_->WaitForRounds(2)) << "a reader hangs";
    EXPECT_EQ(reader_->problem(), "");
  }
  static pid_t HolderPid() {
    const std::vector<pid_t> holders = ChildrenNamed("kapsule-holder");
    return holders.size() == 1 ? holders[0] : -1;
  }

  StoredLayer layer_;
  std::unique_ptr<ErofsMount> mount_;
  std::unique_ptr<Reader> reader_;
  std::atomic<int> deaths_ = 0, takeovers_ = 0, settlements_ = 0;
  std::vector<std::string> settled_;  // written before settlements_
};

TEST_F(StuckTest, AStoppedProcessIsKilledAndSucceeded) {
  StartPlane(StuckOptions());
  ASSERT_NO_FATAL_FAILURE(Read());
  const int deaths = deaths_;
  for (int round = 1; round <= 2; ++round) {
    const pid_t pid = plane_->pid();
    ASSERT_NO_FATAL_FAILURE(SendSignal(pid, SIGSTOP));
    ASSERT_TRUE(Eventually([&] { return takeovers_ == round; }));
    EXPECT_FALSE(IsAlive(pid));
    ExpectReading();
  }
  EXPECT_EQ(deaths_, deaths);
}

TEST_F(StuckTest, SoIsOneThatNobodyReadsFrom) {
  StartPlane(StuckOptions());
  ASSERT_NO_FATAL_FAILURE(SendSignal(plane_->pid(), SIGSTOP));
  EXPECT_TRUE(Eventually([&] { return takeovers_ == 1; }));
  EXPECT_TRUE(Open(layer_).ok());
}

TEST_F(StuckTest, WhereEachSuccessorIsStuckTooTheConnectionIsGivenUp) {
  StartPlane(StuckOptions());
  ASSERT_NO_FATAL_FAILURE(Read());
  const int deaths = deaths_;
  for (pid_t stopped = -1; deaths_ == deaths;) {
    const pid_t pid = plane_->pid();
    if (pid != -1 && pid != stopped && plane_->serving()) kill(stopped = pid, SIGSTOP);
    ASSERT_LT(takeovers_, 20);
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_GE(takeovers_, 2);
  EXPECT_TRUE(Eventually([&] { return !reader_->problem().empty(); }));  // and does not hang
}

TEST_F(StuckTest, ReadsThatWaitForKeysMakeNobodyStuck) {
  StartPlane(StuckOptions());
  ASSERT_NO_FATAL_FAILURE(Read());
  keys_->SetDelay(3 * kStuckAfter);
  ASSERT_NO_FATAL_FAILURE(SendSignal(plane_->pid(), SIGKILL));
  ASSERT_TRUE(Eventually([&] { return takeovers_ == 1; }));
  ExpectReading();  // after the keys have come
  EXPECT_EQ(takeovers_, 1);
}

TEST_F(StuckTest, ManyReadersMakeNobodyStuck) {
  StartPlane(StuckOptions());
  ASSERT_NO_FATAL_FAILURE(Read());
  std::vector<std::unique_ptr<Reader>> readers;
  for (int i = 0; i < 16; ++i)
    readers.push_back(std::make_unique<Reader>(mount_->path(), layer_.layer));
  absl::SleepFor(3 * kStuckAfter);
  for (const auto& reader : readers) EXPECT_EQ(reader->problem(), "");
  EXPECT_EQ(takeovers_, 0);
}

TEST_F(StuckTest, ADebuggerMayHaveTheProcess) {
  StartPlane(StuckOptions());
  const pid_t pid = plane_->pid();
  ASSERT_EQ(ptrace(PTRACE_SEIZE, pid, nullptr, nullptr), 0);
  ASSERT_EQ(ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr), 0);
  ASSERT_EQ(waitpid(pid, nullptr, __WALL), pid);
  absl::SleepFor(3 * kStuckAfter);
  EXPECT_EQ(plane_->pid(), pid);
  EXPECT_EQ(ptrace(PTRACE_DETACH, pid, nullptr, nullptr), 0);
  EXPECT_TRUE(Open(layer_).ok());
  EXPECT_EQ(takeovers_, 0);
}

TEST_F(StuckTest, ItCanBeTurnedOff) {
  StartPlane(StuckOptions(absl::InfiniteDuration()));
  const pid_t pid = plane_->pid();
  ASSERT_NO_FATAL_FAILURE(SendSignal(pid, SIGSTOP));
  absl::SleepFor(3 * kStuckAfter);
  EXPECT_EQ(plane_->pid(), pid);
  ASSERT_NO_FATAL_FAILURE(SendSignal(pid, SIGCONT));
  EXPECT_TRUE(Open(layer_).ok());
}

TEST_F(StuckTest, ASilentHolderTurnsFailoverOffUntilItAnswers) {
  StartPlane(StuckOptions());
  ASSERT_NO_FATAL_FAILURE(Read());
  const pid_t holder = HolderPid();
  ASSERT_NO_FATAL_FAILURE(SendSignal(holder, SIGSTOP));
  EXPECT_TRUE(Eventually([&] { return !plane_->failover(); }));
  EXPECT_EQ(plane_->Upgrade().code(), absl::StatusCode::kFailedPrecondition);
  ExpectReading();
  ASSERT_NO_FATAL_FAILURE(SendSignal(holder, SIGCONT));
  EXPECT_TRUE(Eventually([&] { return plane_->failover(); }));
  EXPECT_EQ(takeovers_, 0);
  ASSERT_NO_FATAL_FAILURE(SendSignal(plane_->pid(), SIGKILL));
  EXPECT_TRUE(Eventually([&] { return takeovers_ == 1; }));
  ExpectReading();
}

TEST_F(StuckTest, TheNextSnapshotterWaitsForAHolderThatIsSlow) {
  StartPlane(StuckOptions());
  ASSERT_NO_FATAL_FAILURE(Read());
  const pid_t pid = plane_->pid(), holder = HolderPid();
  LeavePlane();
  const int deaths = deaths_;
  ASSERT_NO_FATAL_FAILURE(SendSignal(holder, SIGSTOP));
  std::thread thaw([&] {
    absl::SleepFor(kStuckAfter + kStuckAfter / 2);  // one question is not answered
    SendSignal(holder, SIGCONT);
  });
  StartPlane(StuckOptions());
  thaw.join();
  EXPECT_EQ(plane_->pid(), pid);
  EXPECT_EQ(deaths_, deaths);
  ExpectReading();
}

TEST_F(StuckTest, AHolderThatAnEarlierRunLeftHangingIsKilled) {
  StartPlane(StuckOptions());
  const pid_t pid = plane_->pid(), holder = HolderPid();
  LeavePlane();
  ASSERT_NO_FATAL_FAILURE(SendSignal(holder, SIGSTOP));
  StartPlane(StuckOptions());
  EXPECT_FALSE(plane_->adopted().has_value());
  EXPECT_FALSE(IsAlive(holder));
  EXPECT_NE(plane_->pid(), pid);
  EXPECT_TRUE(plane_->failover());
  EXPECT_TRUE(Open(layer_).ok());
}

TEST_F(StuckTest, AnAdoptedHolderThatHangsIsKilledAtTheEnd) {
  StartPlane(StuckOptions());
  const pid_t holder = HolderPid();
  LeavePlane();
  StartPlane(StuckOptions());
  ASSERT_TRUE(plane_->adopted().has_value());
  ASSERT_NO_FATAL_FAILURE(SendSignal(holder, SIGSTOP));
  plane_.reset();
  EXPECT_FALSE(IsAlive(holder));
}

TEST_F(StuckTest, WhatAnEarlierRunWasOpeningIsToldWhenItIsOpen) {
  StartPlane(StuckOptions());
  keys_->SetDelay(absl::Seconds(15));
  std::thread caller([&] { EXPECT_FALSE(Open(layer_).ok()); });
  ASSERT_TRUE(Eventually([&] { return keys_->requests() > 0; }));
  plane_->Leave();
  plane_->Stop();
  caller.join();
  LeavePlane();
  DataPlane::Options options = StuckOptions();
  options.settle_after = 4 * kStuckAfter;
  StartPlane(options);
  ASSERT_TRUE(plane_->adopted().has_value());
  EXPECT_TRUE(plane_->adopted()->empty());
  keys_->SetDelay(absl::ZeroDuration());
  ASSERT_TRUE(Eventually([&] { return settlements_ > 0; }));
  EXPECT_EQ(settled_, std::vector<std::string>{layer_.digest.hex()});
  absl::SleepFor(3 * options.settle_after / 2);
  EXPECT_EQ(settlements_, 1);
}

}  // namespace
}  // namespace kapsule::snapshotter
