#include "snapshotter/fuse/held_views.h"

#include <absl/synchronization/notification.h>
#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <thread>

#include "snapshotter/fuse/test_node.h"
#include "snapshotter/fuse/test_views.h"

namespace kapsule::fuse {
namespace {

using testing::DigestStarting;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class HeldViewsTest : public ::testing::Test {
 protected:
  HeldViewsTest() {
    table_.Restore({});
    table_.OnForgotten([this](const std::string& name) { held_.Forget(name); });
    EXPECT_TRUE(chores_.Start(1).ok());
  }
  ~HeldViewsTest() override {
    Flush();  // the pool's thread lives on, with nothing to do
    holder_.Stop();
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }
  static std::string MakeFolder() {
    std::string name = "/tmp/kapsule-held-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    return name;
  }

  void Put(const HeldViews::Claim& claim) {
    const int fd = made_->view->image().fd();
    claim.Put(fd, fd, fd);
  }
  absl::Status Publish() {
    const ViewTable::Opening opening(table_, name_);
    return table_.Publish(opening, made_->view);
  }
  // What was to be forgotten is.
  void Flush() {
    absl::Notification done;
    chores_.AddAt(absl::Now(), [&done] { done.Notify(); });
    done.WaitForNotification();
  }
  std::vector<std::string> Names() { return client_.List("view/").value(); }

  const std::string folder_ = MakeFolder();
  testing::TestHolder holder_{folder_ + "/holder.sock"};
  const control::Holder client_{holder_.Connect()};
  const std::unique_ptr<testing::TestView> made_ =
      testing::MakeTestView(DigestStarting("ab"), 1000);
  const std::string name_ = made_->view->name();
  const std::unique_ptr<RequestMemory> memory_ = testing::MakeMemory();
  ViewTable table_{*memory_};
  TaskPool& chores_ = *std::make_unique<TaskPool>(10).release();
  HeldViews held_{client_, table_, chores_};
};

TEST_F(HeldViewsTest, AViewIsHeldUntilNobodyKnowsIt) {
  {
    const HeldViews::Claim claim(held_, name_);
    Put(claim);
    ASSERT_TRUE(Publish().ok());
  }
  EXPECT_THAT(Names(), ElementsAre("view/" + name_));
  const uint64_t node = ViewTable::NodeOf(name_);
  const auto handle = table_.OpenHandle(node, memory_->slot(0));
  ASSERT_TRUE(handle.has_value());
  table_.Withdraw(name_);
  Flush();
  EXPECT_THAT(Names(), ElementsAre("view/" + name_)) << "somebody has it open";
  table_.ReleaseHandle(node, *handle, memory_->slot(0));
  Flush();
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(HeldViewsTest, AFailedOpeningTakesItBack) {
  {
    const HeldViews::Claim claim(held_, name_);
    Put(claim);
    EXPECT_THAT(Names(), ElementsAre("view/" + name_));
  }
  EXPECT_THAT(Names(), IsEmpty());
}

// A view that is opened again while the last word on the old one is on its way.
TEST_F(HeldViewsTest, WhatIsOpenedAgainIsNotDropped) {
  {
    const HeldViews::Claim claim(held_, name_);
    held_.Forget(name_);
    Flush();
    Put(claim);
    ASSERT_TRUE(Publish().ok());
  }
  EXPECT_THAT(Names(), ElementsAre("view/" + name_));
  {
    const HeldViews::Claim claim(held_, name_);
    table_.Withdraw(name_);
    Flush();
    EXPECT_THAT(Names(), ElementsAre("view/" + name_)) << "the claim is respected";
  }
  EXPECT_THAT(Names(), IsEmpty()) << "and its owner looks again";
}

TEST_F(HeldViewsTest, OneClaimAtATime) {
  auto claim = std::make_unique<HeldViews::Claim>(held_, name_);
  absl::Notification second;
  std::thread thread([&] {
    const HeldViews::Claim waits(held_, name_);
    second.Notify();
  });
  const HeldViews::Claim other(held_, std::string(64, 'c'));
  EXPECT_FALSE(second.WaitForNotificationWithTimeout(absl::Milliseconds(50)));
  claim.reset();
  thread.join();
  EXPECT_TRUE(second.HasBeenNotified());
}

}  // namespace
}  // namespace kapsule::fuse
