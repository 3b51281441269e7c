// Processes that die, are upgraded, or are found by the next kapsule-snapshotter,
// while containers read. Needs root.
#include <absl/time/clock.h>
#include <signal.h>
#include <sys/mount.h>

#include <atomic>

#include "core/base/unix_socket.h"
#include "core/control/holder_wire.h"
#include "snapshotter/data_plane.h"
#include "snapshotter/data_plane_test_node.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using blob::MakeTestFile;
using blob::SampleFiles;
using blob::TestBytes;
using testing::ChildrenNamed;
using testing::CompareTree;
using testing::ErofsMount;
using testing::Eventually;
using testing::FuseProgram;
using testing::IsAlive;
using testing::Reader;
using testing::SendSignal;
using testing::StoredLayer;

class FailoverTest : public testing::DataPlaneTest {
 protected:
  void SetUp() override {
    DataPlaneTest::SetUp();
    program_ = folder_ / "bin/kapsule-fuse";
    ASSERT_TRUE(MakeDirs(program_.parent_path(), 0755).ok());
    Install(FuseProgram());
    StartPlane(WatchedOptions());
    layer_ =
        Store({MakeTestFile("weights", TestBytes(8 << 20, 5)), MakeTestFile("small", "x")}, key_);
  }
  void TearDown() override {
    readers_.clear();
    mount_.reset();
    DataPlaneTest::TearDown();
  }

  // Puts a program in the place of kapsule-fuse, as a package does.
  void Install(const fs::path& program) const {
    const fs::path made = program_.string() + ".new";
    fs::copy_file(program, made);
    fs::rename(made, program_);
  }
  DataPlane::Options WatchedOptions() {
    DataPlane::Options options = Options();
    options.give_up_after = absl::Seconds(2);
    options.program = program_;
    options.on_death = [this] { ++deaths_; };
    options.on_restart = [this] { ++restarts_; };
    return options;
  }

  // The layer, mounted, under two readers.
  void Read() {
    const auto view = Open(layer_);
    ASSERT_TRUE(view.ok()) << view.status();
    auto mounted = Mount(*view);
    ASSERT_TRUE(mounted.ok()) << mounted.status();
    mount_ = *std::move(mounted);
    for (int i = 0; i < 2; ++i)
      readers_.push_back(std::make_unique<Reader>(mount_->path(), layer_.layer));
    ExpectReading();
  }
  void ExpectReading() const {
    for (const auto& reader : readers_) {
      EXPECT_TRUE(reader->WaitForRounds(2)) << "a reader hangs";
      EXPECT_EQ(reader->problem(), "");
    }
  }

  int takeovers() const { return static_cast<int>(plane_->status().takeovers); }

  fs::path program_;
  StoredLayer layer_;
  std::unique_ptr<ErofsMount> mount_;
  std::vector<std::unique_ptr<Reader>> readers_;
  std::atomic<int> deaths_ = 0, restarts_ = 0;
};

TEST_F(FailoverTest, AKilledProcessIsSucceededAndReadersOnlyWait) {
  ASSERT_NO_FATAL_FAILURE(Read());
  const int deaths = deaths_;
  for (int round = 1; round <= 8; ++round) {
    const pid_t pid = plane_->pid();
    ASSERT_NO_FATAL_FAILURE(SendSignal(pid, SIGKILL));
    ASSERT_TRUE(Eventually([&] { return takeovers() == round; }));
    EXPECT_NE(plane_->pid(), pid);
    EXPECT_FALSE(IsAlive(pid));  // reaped
    EXPECT_TRUE(plane_->serving());
    ExpectReading();
  }
  EXPECT_EQ(deaths_, deaths);
  const DataPlaneStatus status = plane_->status();
  EXPECT_EQ(status.takeovers, 8u);
  EXPECT_EQ(status.views, 1u);
  EXPECT_TRUE(status.failover);
  EXPECT_GT(status.last_stall, absl::ZeroDuration());
  EXPECT_LT(status.last_stall, absl::Seconds(10));
}

TEST_F(FailoverTest, AnOpenLayerCanBeClosedAfterASuccession) {
  ASSERT_NO_FATAL_FAILURE(Read());
  ASSERT_NO_FATAL_FAILURE(SendSignal(plane_->pid(), SIGKILL));
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  EXPECT_TRUE(plane_->Authorise(layer_.digest, layer_.annotations, deadline).ok());
  EXPECT_TRUE(plane_->Close(layer_.digest, deadline).ok());
  ExpectReading();
  readers_.clear();
  mount_.reset();
  EXPECT_TRUE(Eventually([&] { return plane_->status().views == 0; }));
  EXPECT_TRUE(Open(layer_).ok());
}

TEST_F(FailoverTest, AnotherSnapshotterGoesOnWithTheProcessThatServes) {
  ASSERT_NO_FATAL_FAILURE(Read());
  const pid_t pid = plane_->pid();
  LeavePlane();
  ExpectReading();
  deaths_ = 0;
  StartPlane(WatchedOptions());
  EXPECT_EQ(plane_->pid(), pid);
  ASSERT_TRUE(plane_->adopted().has_value());
  EXPECT_EQ(*plane_->adopted(), std::vector<std::string>{layer_.digest.hex()});
  EXPECT_EQ(deaths_, 0);
  ExpectReading();
  // It is watched and asked as one's own.
  EXPECT_TRUE(Open(layer_).ok());
  EXPECT_TRUE(Open(Store(SampleFiles(), key_)).ok());
  ASSERT_NO_FATAL_FAILURE(SendSignal(pid, SIGKILL));
  ASSERT_TRUE(Eventually([&] { return takeovers() == 1; }));
  EXPECT_EQ(plane_->status().views, 2u);
  ExpectReading();
}

TEST_F(FailoverTest, WhereTheProcessDiedTooReadersWaitForTheNextSnapshotter) {
  ASSERT_NO_FATAL_FAILURE(Read());
  const pid_t pid = plane_->pid();
  LeavePlane();
  ASSERT_NO_FATAL_FAILURE(SendSignal(pid, SIGKILL));
  absl::SleepFor(absl::Milliseconds(300));
  deaths_ = 0;
  StartPlane(WatchedOptions());
  EXPECT_NE(plane_->pid(), pid);
  EXPECT_TRUE(plane_->adopted().has_value());
  EXPECT_EQ(deaths_, 0);
  ExpectReading();
}

// As systemd does with the descriptors that kapsule-holder sent to it.
TEST_F(FailoverTest, WhereTheHolderDiedTooTheServiceManagerGivesItsDescriptorsBack) {
  Read();
  const control::Holder holder(ConnectUnix(folder_ / "holder.sock", SOCK_SEQPACKET).value());
  std::vector<int> stored;
  std::string names;
  const std::vector<std::string> held = holder.List("").value();
  for (const std::string& name : held) {
    const std::vector<UniqueFd> fds = holder.Get(name).value();
    for (size_t i = 0; i < fds.size(); ++i) {
      stored.push_back(fds[i].Duplicate()->release());
      names += fmt::format("{}{}.{}{}", names.empty() ? "" : ":", name, i, fds.size());
    }
  }
  const std::vector<pid_t> holders = ChildrenNamed("kapsule-holder");
  ASSERT_EQ(holders.size(), 1u);
  const pid_t pid = plane_->pid();
  LeavePlane();
  for (const pid_t each : {pid, holders[0]}) ASSERT_NO_FATAL_FAILURE(SendSignal(each, SIGKILL));
  ASSERT_TRUE(Eventually([&] { return !holder.List("").ok(); }));

  ASSERT_EQ(setenv("LISTEN_FDNAMES", names.c_str(), 1), 0);
  DataPlane::Options options = WatchedOptions();
  options.stored_fds = stored;
  StartPlane(std::move(options));
  unsetenv("LISTEN_FDNAMES");
  ASSERT_TRUE(plane_->adopted().has_value());
  EXPECT_EQ(plane_->adopted()->size(), 1u);
  ExpectReading();
  ASSERT_NO_FATAL_FAILURE(SendSignal(plane_->pid(), SIGKILL));
  ASSERT_TRUE(Eventually([&] { return takeovers() == 1; }));
  ExpectReading();
}

TEST_F(FailoverTest, ASnapshotterThatComesAsTheHolderEndsGoesOnOrBeginsAnew) {
  DataPlane::Options options = WatchedOptions();
  options.abandon_after = absl::Milliseconds(150);
  plane_.reset();
  StartPlane(options);
  for (int i = 0; i < 10; ++i) {
    const pid_t pid = plane_->pid();
    ASSERT_TRUE(Open(layer_).ok()) << i;
    LeavePlane();
    ASSERT_NO_FATAL_FAILURE(SendSignal(pid, SIGKILL));
    absl::SleepFor(options.abandon_after + absl::Milliseconds(4 * i - 20));
    ASSERT_NO_FATAL_FAILURE(StartPlane(options));
    EXPECT_TRUE(plane_->serving());
    EXPECT_NE(plane_->pid(), pid);
  }
}

TEST_F(FailoverTest, WhatAnEarlierRunLeftIsRemovedWhereItIsOfNoUse) {
  const pid_t pid = plane_->pid();
  LeavePlane();
  ASSERT_EQ(umount2((folder_ / "views").c_str(), MNT_DETACH), 0);
  deaths_ = 0;
  StartPlane(WatchedOptions());
  EXPECT_FALSE(plane_->adopted().has_value());
  EXPECT_EQ(deaths_, 1);  // nothing of it may stay mounted
  EXPECT_FALSE(IsAlive(pid));
  EXPECT_TRUE(Open(layer_).ok());
}

TEST_F(FailoverTest, AnUpgradeSwapsTheProcessUnderReaders) {
  ASSERT_NO_FATAL_FAILURE(Read());
  for (int round = 1; round <= 3; ++round) {
    const pid_t pid = plane_->pid();
    Install(FuseProgram());
    EXPECT_EQ(plane_->Upgrade(), absl::OkStatus());
    EXPECT_NE(plane_->pid(), pid);
    EXPECT_FALSE(IsAlive(pid));
    EXPECT_EQ(takeovers(), round);
    ExpectReading();
  }
  EXPECT_TRUE(Open(layer_).ok());
}

TEST_F(FailoverTest, AnUpgradeToABrokenProgramKeepsTheOldOne) {
  ASSERT_NO_FATAL_FAILURE(Read());
  const pid_t pid = plane_->pid();
  Install("/bin/false");
  const absl::Status status = plane_->Upgrade();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_NE(Message(status).find("the old one serves on"), std::string::npos);
  EXPECT_EQ(plane_->pid(), pid);
  EXPECT_EQ(takeovers(), 0);
  ExpectReading();
  Install(FuseProgram());
  EXPECT_EQ(plane_->Upgrade(), absl::OkStatus());
  ExpectReading();
}

TEST_F(FailoverTest, AnUpgradeThatDoesNotGetTheKeysKeepsTheOldOne) {
  ASSERT_NO_FATAL_FAILURE(Read());
  const pid_t pid = plane_->pid();
  keys_->SetKeys({other_key_});
  const absl::Status status = plane_->Upgrade();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_NE(Message(status).find("no key for 1 of 1 views"), std::string::npos) << status;
  EXPECT_EQ(plane_->pid(), pid);
  ExpectReading();
}

TEST_F(FailoverTest, AProcessThatDiesDuringItsUpgradeIsSucceeded) {
  ASSERT_NO_FATAL_FAILURE(Read());
  keys_->SetDelay(absl::Seconds(2));
  const int before = keys_->requests();
  absl::Status status;
  std::thread upgrade([&] { status = plane_->Upgrade(); });
  ASSERT_TRUE(Eventually([&] { return keys_->requests() > before; }));
  ASSERT_NO_FATAL_FAILURE(SendSignal(plane_->pid(), SIGKILL));
  ASSERT_TRUE(Eventually([&] { return takeovers() == 1; }));
  upgrade.join();
  EXPECT_EQ(status, absl::OkStatus());  // the successor is of the new program
  EXPECT_EQ(takeovers(), 1);
  ExpectReading();
  EXPECT_TRUE(Eventually([] { return ChildrenNamed("kapsule-fuse").size() == 1u; }));
}

TEST_F(FailoverTest, AnOutdatedProcessIsUpgradedByTheNextSnapshotter) {
  ASSERT_NO_FATAL_FAILURE(Read());
  pid_t pid = plane_->pid();
  LeavePlane();
  Install(FuseProgram());
  StartPlane(WatchedOptions());
  EXPECT_TRUE(Eventually([&] { return plane_->pid() != pid && plane_->serving(); }));
  ExpectReading();

  pid = plane_->pid();
  LeavePlane();
  DataPlane::Options options = WatchedOptions();
  options.log_level = "warning";
  StartPlane(std::move(options));
  EXPECT_TRUE(Eventually([&] { return plane_->pid() != pid && plane_->serving(); }));
  ExpectReading();
}

TEST_F(FailoverTest, WhereNoSuccessorStartsTheConnectionIsGivenUp) {
  ASSERT_NO_FATAL_FAILURE(Read());
  const int deaths = deaths_;
  Install("/bin/false");
  ASSERT_NO_FATAL_FAILURE(SendSignal(plane_->pid(), SIGKILL));
  ASSERT_TRUE(Eventually([&] { return deaths_ == deaths + 1; }));
  EXPECT_FALSE(plane_->serving());
  ASSERT_TRUE(Eventually([&] { return !readers_[0]->problem().empty(); }));  // and does not hang
  EXPECT_EQ(Open(layer_, absl::Seconds(1)).status().code(), absl::StatusCode::kUnavailable);
  Install(FuseProgram());
  ASSERT_TRUE(Eventually([&] { return restarts_ == 1; }));
  EXPECT_EQ(takeovers(), 0);
  EXPECT_TRUE(plane_->failover());
  const auto view = Open(layer_);
  ASSERT_TRUE(view.ok()) << view.status();
  const auto mounted = Mount(*view);
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_EQ(CompareTree((*mounted)->path(), layer_.layer), "");
}

TEST_F(FailoverTest, WithoutHolderTheProcessServesOnUntilItDies) {
  ASSERT_NO_FATAL_FAILURE(Read());
  const std::vector<pid_t> holders = ChildrenNamed("kapsule-holder");
  ASSERT_EQ(holders.size(), 1u);
  ASSERT_NO_FATAL_FAILURE(SendSignal(holders[0], SIGKILL));
  ASSERT_TRUE(Eventually([&] { return !plane_->failover(); }));
  EXPECT_FALSE(plane_->status().failover);
  EXPECT_TRUE(plane_->serving());
  ExpectReading();
  EXPECT_EQ(plane_->Upgrade().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Open(layer_).ok());  // an open view needs no holder
  const int deaths = deaths_;
  ASSERT_NO_FATAL_FAILURE(SendSignal(plane_->pid(), SIGKILL));
  ASSERT_TRUE(Eventually([&] { return restarts_ == 1; }));
  EXPECT_EQ(deaths_, deaths + 1);
  EXPECT_TRUE(plane_->failover());
  EXPECT_TRUE(Open(layer_).ok());
}

TEST_F(FailoverTest, TheEndLeavesNothingOfWhatWasAdopted) {
  ASSERT_NO_FATAL_FAILURE(Read());
  const pid_t pid = plane_->pid();
  LeavePlane();
  StartPlane(WatchedOptions());
  readers_.clear();
  mount_.reset();
  plane_.reset();
  EXPECT_FALSE(IsAlive(pid));
  EXPECT_FALSE(fs::exists(folder_ / "holder.sock"));
  EXPECT_TRUE(fs::is_empty(folder_ / "views"));
}

}  // namespace
}  // namespace kapsule::snapshotter
