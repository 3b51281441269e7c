// A holder that nobody is connected to.
#include <absl/time/clock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <thread>

#include "core/base/unix_socket.h"
#include "core/control/holder_server.h"

namespace kapsule::control {
namespace {

using End = HolderServer::End;

constexpr absl::Duration kAbandonAfter = absl::Milliseconds(300);

class HolderAbandonedTest : public testing::Test {
 protected:
  HolderAbandonedTest() {
    if (mkdtemp(folder_.data()) == nullptr) abort();
    Listen();
  }
  ~HolderAbandonedTest() override {
    if (thread_.joinable()) {
      const uint64_t one = 1;
      EXPECT_EQ(write(stop_.get(), &one, sizeof(one)), 8);
      Wait();
    }
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  void Listen() {
    server_ =
        HolderServer::Make(ListenUnix(path(), SOCK_SEQPACKET, 0600).value(), 65533, store_).value();
  }
  // As kapsule-holder: with its end, its socket is closed.
  void Serve(absl::Duration abandon_after = kAbandonAfter) {
    thread_ = std::thread([this, abandon_after] {
      end_ = server_->Run(stop_.get(), abandon_after);
      ended_ = absl::Now();
      server_.reset();
    });
  }
  End Wait() {
    thread_.join();
    return end_.value();
  }
  std::string path() const { return folder_ + "/s"; }
  UniqueFd Connect() const { return ConnectUnix(path(), SOCK_SEQPACKET).value(); }

  std::string folder_ = "/tmp/kapsule-holder-XXXXXX";
  const UniqueFd stop_{eventfd(0, EFD_CLOEXEC)};
  HolderStore store_{10};
  std::unique_ptr<HolderServer> server_;
  std::thread thread_;
  absl::StatusOr<End> end_ = End::kStopped;
  absl::Time ended_;
};

TEST_F(HolderAbandonedTest, ItEndsSomeTimeAfterItsLastClient) {
  auto first = std::make_unique<Holder>(Connect());
  auto second = std::make_unique<Holder>(Connect());
  Serve();
  ASSERT_TRUE(first->Put("fuse", {0}).ok());
  absl::SleepFor(2 * kAbandonAfter);
  first.reset();
  absl::SleepFor(2 * kAbandonAfter);
  EXPECT_TRUE(second->List("").ok()) << "one client is enough, also one that asks for nothing";
  const absl::Time since = absl::Now();
  second.reset();
  EXPECT_EQ(Wait(), End::kAbandoned);
  EXPECT_GE(ended_ - since, kAbandonAfter);
  EXPECT_LT(ended_ - since, kAbandonAfter + absl::Seconds(5));
  EXPECT_FALSE(ConnectUnix(path(), SOCK_SEQPACKET).ok());
}

TEST_F(HolderAbandonedTest, OneThatNobodyEverAskedEndsToo) {
  const absl::Time since = absl::Now();
  Serve();
  EXPECT_EQ(Wait(), End::kAbandoned);
  EXPECT_GE(ended_ - since, kAbandonAfter);
}

TEST_F(HolderAbandonedTest, WhoWaitsToBeAcceptedIsServedHoweverLateItIs) {
  const Holder waiting(Connect());
  Serve(absl::ZeroDuration());
  EXPECT_TRUE(waiting.List("").ok());
  absl::SleepFor(kAbandonAfter);
  EXPECT_TRUE(waiting.List("").ok());
}

TEST_F(HolderAbandonedTest, EachClientThatComesBackBeginsTheTimeAnew) {
  constexpr absl::Duration kPatience = absl::Seconds(4);
  const absl::Time since = absl::Now();
  Serve(kPatience);
  for (; absl::Now() - since < 3 * kPatience / 2; absl::SleepFor(kPatience / 4))
    ASSERT_TRUE(Holder(Connect()).List("").ok()) << absl::Now() - since;
  EXPECT_EQ(Wait(), End::kAbandoned);
}

TEST_F(HolderAbandonedTest, WithoutATimeItWaitsForEver) {
  Serve(absl::InfiniteDuration());
  absl::SleepFor(2 * kAbandonAfter);
  EXPECT_TRUE(Holder(Connect()).List("").ok());
}

TEST_F(HolderAbandonedTest, WhoConnectsJustAfterIsToldByTheEndOfItsConnection) {
  ASSERT_EQ(server_->Run(stop_.get(), absl::ZeroDuration()).value(), End::kAbandoned);
  const Holder late(Connect());
  std::thread ending([this] {
    absl::SleepFor(absl::Milliseconds(50));
    server_.reset();
  });
  const absl::Time since = absl::Now();
  EXPECT_EQ(late.List("").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(late.Put("fuse", {0}).code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - since, absl::Seconds(4)) << "its patience";
  ending.join();
}

// As a snapshotter sees it that comes in the very moment: no call hangs, and a holder
// that has answered once goes on.
TEST_F(HolderAbandonedTest, WhoConnectsAsItEndsIsServedOrFindsNone) {
  constexpr absl::Duration kShort = absl::Milliseconds(2);
  int served = 0;
  for (int i = 0; i < 300; ++i) {
    if (server_ == nullptr) Listen();
    Serve(kShort);
    absl::SleepFor(i * kShort / 150);  // from long before the end to as long after it
    absl::StatusOr<UniqueFd> socket = ConnectUnix(path(), SOCK_SEQPACKET);
    const absl::Time since = absl::Now();
    if (socket.ok()) {
      const Holder holder(*std::move(socket));
      const absl::Status put = holder.Put("fuse", {0});
      EXPECT_TRUE(put.ok() || absl::IsUnavailable(put)) << put;
      EXPECT_EQ(holder.Get("fuse").ok(), put.ok());
      served += put.ok() ? 1 : 0;
    }
    EXPECT_LT(absl::Now() - since, absl::Seconds(4)) << "its patience";
    EXPECT_EQ(Wait(), End::kAbandoned);
  }
  EXPECT_GT(served, 0);
}

}  // namespace
}  // namespace kapsule::control
