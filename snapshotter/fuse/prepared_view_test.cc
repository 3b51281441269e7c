// The real kapsule-fuse with a real mount, made ready while a predecessor serves, which is
// told of other files before it ends.
#include <absl/time/clock.h>
#include <fcntl.h>
#include <gtest/gtest.h>

#include "snapshotter/fuse/test_fetcher.h"

namespace kapsule::fuse {
namespace {

using testing::OpenView;
using testing::ReadAll;
using testing::TestFetcher;
using testing::TestNode;
using testing::TestProcess;

class PreparedViewTest : public ::testing::Test {
 protected:
  // A process that serves the layer, which comes from a registry.
  std::unique_ptr<TestProcess> StartWithRemote(bool encrypted) {
    auto process = node_.Start();
    EXPECT_EQ(process->Serve(), absl::OkStatus());
    UseFetcher(*process);
    EXPECT_EQ(node_.OpenRemote(*process, encrypted, fetcher_.OpenFileOf(encrypted)),
              absl::OkStatus());
    return process;
  }
  // The next one, which is ready. Where it waits for a file in vain, its reads fail soon.
  std::unique_ptr<TestProcess> Prepare(uint32_t timeout_ms = 30'000, uint32_t without_key = 0) {
    auto next = node_.Start({"--fetch-grace-ms", "1000"});
    v1::DataPlaneRequest request;
    request.mutable_prepare()->set_timeout_ms(timeout_ms);
    const auto reply = next->Call(request);
    EXPECT_TRUE(reply.ok()) << reply.status();
    if (reply.ok()) {
      EXPECT_EQ(reply->views(), 1u);
      EXPECT_EQ(reply->views_without_key(), without_key);
    }
    return next;
  }
  static void Succeed(TestProcess& process, TestProcess& next) {
    process.Kill();
    ASSERT_EQ(next.Serve(), absl::OkStatus());
  }

  void UseFetcher(TestProcess& process) {
    const UniqueFd socket = fetcher_.Connect();
    EXPECT_TRUE(node_.HolderClient().Put(control::kHeldFetch, {socket.get()}).ok());
    v1::DataPlaneRequest request;
    request.mutable_use_fetcher();
    EXPECT_EQ(process.Call(request, {socket.get()}).status(), absl::OkStatus());
  }
  void UseFile(TestProcess& process, bool encrypted) {
    v1::DataPlaneRequest request;
    request.mutable_use_file()->set_digest(TestNode::DigestOf(encrypted).hex());
    const UniqueFd blob = fetcher_.OpenFileOf(encrypted);
    EXPECT_EQ(process.Call(request, {blob.get()}).status(), absl::OkStatus());
  }
  void UseLocal(TestProcess& process, bool encrypted) {
    v1::DataPlaneRequest request;
    request.mutable_use_local()->set_digest(TestNode::DigestOf(encrypted).hex());
    const UniqueFd blob = OpenFile(node_.BlobPath(encrypted), O_RDONLY).value();
    EXPECT_EQ(process.Call(request, {blob.get()}).status(), absl::OkStatus());
    // It is closed in kapsule-fetch then.
    fetcher_.Behave(encrypted, {.failure = NotFound("not open")});
  }
  void ExpectAllIsRead(bool encrypted) {
    EXPECT_TRUE(ReadAll(OpenView(node_, encrypted)) == node_.Expected(encrypted));
  }

  TestNode node_;
  TestFetcher fetcher_{node_};
};

TEST_F(PreparedViewTest, WhatIsCompleteElsewhereSinceThenIsReadThere) {
  auto process = StartWithRemote(true);
  auto next = Prepare();
  UseLocal(*process, true);
  ASSERT_NO_FATAL_FAILURE(Succeed(*process, *next));
  ExpectAllIsRead(true);
}

// A plain layer: holes would be taken for zeros.
TEST_F(PreparedViewTest, ANewFileOfTheBlobSinceThenIsTheOneThatIsRead) {
  auto process = StartWithRemote(false);
  auto next = Prepare();
  fetcher_.BeginAnew(false, /*keep=*/true);
  UseFetcher(*process);
  UseFile(*process, false);
  ASSERT_NO_FATAL_FAILURE(Succeed(*process, *next));
  ExpectAllIsRead(false);
}

TEST_F(PreparedViewTest, AnOpeningThatBroughtANewFileSinceThenCountsToo) {
  auto process = StartWithRemote(false);
  auto next = Prepare();
  fetcher_.BeginAnew(false, /*keep=*/true);
  EXPECT_EQ(node_.OpenRemote(*process, false, fetcher_.OpenFileOf(false)), absl::OkStatus());
  ASSERT_NO_FATAL_FAILURE(Succeed(*process, *next));
  ExpectAllIsRead(false);
}

TEST_F(PreparedViewTest, AFileThatWasGoneAtThatTimeIsNotAwaitedWhereThereIsAnotherNow) {
  auto process = StartWithRemote(true);
  fetcher_.BeginAnew(true);
  auto next = Prepare();
  UseFetcher(*process);
  UseFile(*process, true);
  ASSERT_NO_FATAL_FAILURE(Succeed(*process, *next));
  ExpectAllIsRead(true);
}

TEST_F(PreparedViewTest, TheSameFileGivenAgainLeavesTheViewItsKey) {
  auto process = StartWithRemote(true);
  auto next = Prepare();
  UseFetcher(*process);
  UseFile(*process, true);
  const int asked = node_.keys().requests();
  ASSERT_NO_FATAL_FAILURE(Succeed(*process, *next));
  ExpectAllIsRead(true);
  EXPECT_EQ(node_.keys().requests(), asked);
}

TEST_F(PreparedViewTest, OneThatIsMadeAnewWaitsForItsKey) {
  auto process = StartWithRemote(true);
  auto next = Prepare();
  UseLocal(*process, true);
  node_.StopKeys();
  ASSERT_NO_FATAL_FAILURE(Succeed(*process, *next));
  const UniqueFd view = OpenView(node_, true);
  std::string got;
  testing::Reader reader(node_, [&] { got = ReadAll(view); });
  absl::SleepFor(absl::Milliseconds(300));
  node_.StartKeys();
  reader.Join();
  EXPECT_TRUE(got == node_.Expected(true));
}

TEST_F(PreparedViewTest, OneWhoseKeyHadNotComeIsMadeAnewToo) {
  auto process = StartWithRemote(true);
  node_.StopKeys();
  auto next = Prepare(300, 1);
  UseLocal(*process, true);
  ASSERT_NO_FATAL_FAILURE(Succeed(*process, *next));
  node_.StartKeys();
  ExpectAllIsRead(true);
}

}  // namespace
}  // namespace kapsule::fuse
