// A real holder and a real FUSE connection; kapsule-fuse is stood in for by a thread
// that answers, and a process that works or does nothing. Needs root.
#include "snapshotter/fuse_life_watch.h"

#include <absl/time/clock.h>

#include <atomic>
#include <csignal>

#include "core/control/control_wire.h"
#include "snapshotter/data_plane_test_node.h"

namespace kapsule::snapshotter {
namespace {

using testing::Eventually;

constexpr absl::Duration kPatience = absl::Milliseconds(300);

// Answers each request by AlreadyExists.
class Answerer {
 public:
  explicit Answerer(UniqueFd socket) : socket_(std::move(socket)) {
    thread_ = std::thread([this] {
      for (;;) {
        const auto request = control::ReceiveRequest(socket_.get());
        if (!request.ok()) return;
        ++requests_;
        (void)control::SendReply(
            socket_.get(), control::MakeReply(request->message.id(), AlreadyExists("it serves")));
      }
    });
  }
  ~Answerer() { thread_.join(); }  // the other end is closed
  int requests() const { return requests_; }

 private:
  const UniqueFd socket_;
  std::atomic<int> requests_ = 0;
  std::thread thread_;
};

// The kernel's INIT lies there, since nobody reads it.
class FuseLifeWatchTest : public testing::DataPlaneTest {
 protected:
  void SetUp() override {
    DataPlaneTest::SetUp();
    const DataPlane::Options options = Options();
    ASSERT_TRUE(MakeDirs(options.views, 0700).ok());
    auto connection = FuseConnection::Make({.views = options.views,
                                            .holder_program = options.holder_program,
                                            .holder_socket = options.holder_socket,
                                            .uid = testing::kTestUid,
                                            .gid = testing::kTestGid,
                                            .patience = absl::Seconds(2)});
    ASSERT_TRUE(connection.ok()) << connection.status();
    connection_ = *std::move(connection);
    control::SocketPair pair = control::MakeSocketPair().value();
    answerer_ = std::make_unique<Answerer>(std::move(pair.theirs));
    channel_ = std::make_shared<ControlChannel>(std::move(pair.ours), [] {});
  }
  void TearDown() override {
    channel_->Close();
    watch_.reset();
    channel_.reset();
    answerer_.reset();
    process_.reset();
    connection_.reset();
    DataPlaneTest::TearDown();
  }
  void Watch(const std::string& script, absl::Duration patience) {
    process_ = DaemonProcess::Start("/bin/sh", {"-c", script}, {}).value();
    watch_ = std::make_unique<FuseLifeWatch>(channel_, process_->pid(), connection_, patience,
                                             [this] { ++changes_; });
  }

  std::shared_ptr<FuseConnection> connection_;
  std::shared_ptr<ControlChannel> channel_;
  std::unique_ptr<Answerer> answerer_;
  std::unique_ptr<DaemonProcess> process_;
  std::unique_ptr<FuseLifeWatch> watch_;
  std::atomic<int> changes_ = 0;
};

TEST_F(FuseLifeWatchTest, AProcessThatAnswersButTakesNoRequestsIsStuck) {
  ASSERT_TRUE(connection_->RequestsLie().value());
  Watch("exec sleep 1000", kPatience);
  ASSERT_TRUE(Eventually([&] { return !watch_->stuck().empty(); }));
  EXPECT_EQ(watch_->stuck(), "it takes no requests");
  EXPECT_TRUE(Eventually([&] { return changes_ == 1; }));
  EXPECT_GE(answerer_->requests(), FuseLifeWatch::kRounds);
}

TEST_F(FuseLifeWatchTest, OneThatWorksIsNot) {
  Watch("while :; do :; done", kPatience);
  EXPECT_TRUE(Eventually([&] { return answerer_->requests() > 6 * FuseLifeWatch::kRounds; }));
  EXPECT_EQ(watch_->stuck(), "");
  EXPECT_EQ(changes_, 0);
}

TEST_F(FuseLifeWatchTest, NorIsAnyWhereNobodyWantsToKnow) {
  Watch("exec sleep 1000", absl::InfiniteDuration());
  absl::SleepFor(3 * kPatience);
  EXPECT_EQ(watch_->stuck(), "");
  EXPECT_EQ(answerer_->requests(), 0);
}

TEST_F(FuseLifeWatchTest, AHolderThatIsSilentIsSeenAndThatItAnswersAgain) {
  Watch("while :; do :; done", kPatience);
  const std::vector<pid_t> holders = testing::ChildrenNamed("kapsule-holder");
  ASSERT_EQ(holders.size(), 1u);
  ASSERT_NO_FATAL_FAILURE(testing::SendSignal(holders[0], SIGSTOP));
  EXPECT_TRUE(Eventually([&] { return !watch_->holder_answers(); }));
  ASSERT_NO_FATAL_FAILURE(testing::SendSignal(holders[0], SIGCONT));
  EXPECT_TRUE(Eventually([&] { return watch_->holder_answers(); }));
  EXPECT_TRUE(Eventually([&] { return changes_ == 2; }));
}

}  // namespace
}  // namespace kapsule::snapshotter
