#include "snapshotter/fuse/fetch_client.h"

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "core/base/unix_socket.h"
#include "core/control/control_wire.h"

namespace kapsule::fuse {
namespace {

using control::FetchDrop;
using control::FetchDropped;
using control::FetchFailed;
using control::FetchHave;
using control::FetchPacket;
using control::FetchWant;
using ::testing::HasSubstr;

constexpr uint64_t kBlock = 64 << 10, kBlocks = 5000;

struct EmptyFile final : ReaderAt {
  uint64_t size() const override { return kBlocks * kBlock; }
  absl::Status ReadAt(uint64_t, MutableByteSpan) const override { return absl::OkStatus(); }
};

class FetchClientTest : public ::testing::Test {
 protected:
  explicit FetchClientTest(absl::Duration grace = absl::Seconds(60))
      : client_({.grace = grace, .repeat = absl::Milliseconds(50)}) {}
  // The end of kapsule-fetch.
  UniqueFd Connect() {
    control::SocketPair pair = control::MakeSocketPair().value();
    EXPECT_TRUE(SetTimeout(pair.theirs.get(), 10'000).ok());
    client_.UseSocket(std::move(pair.ours));
    return std::move(pair.theirs);
  }
  std::unique_ptr<ReaderAt> Open(const oci::Digest& digest) {
    archive::IndexHeader header;
    header.covered_length = kBlocks * kBlock;
    header.block_size = kBlock;
    return client_.Open(digest, {std::make_shared<EmptyFile>(), {1, 2}}, header).value();
  }
  // As kapsule-snapshotter does when it has opened the blob in the next process.
  void UseFile(const oci::Digest& digest, uint64_t inode) {
    EXPECT_TRUE(client_.Find(digest)->UseFile({std::make_shared<EmptyFile>(), {1, inode}}).ok());
  }
  struct Answer {
    absl::Mutex mu;
    absl::CondVar given;
    std::optional<absl::Status> status ABSL_GUARDED_BY(mu);
    bool Comes(absl::Duration timeout) {
      const absl::Time deadline = absl::Now() + timeout;
      absl::MutexLock lock(&mu);
      while (!status && absl::Now() < deadline) given.WaitWithDeadline(&mu, deadline);
      return status.has_value();
    }
    absl::Status Wait() {
      if (!Comes(absl::Seconds(10))) return DeadlineExceeded("no answer");
      absl::MutexLock lock(&mu);
      return *status;
    }
  };
  static std::shared_ptr<Answer> WhenThere(const ReaderAt& blob, uint64_t block,
                                           uint64_t count = 1) {
    auto answer = std::make_shared<Answer>();
    blob.WhenThere(block * kBlock, count * kBlock, [answer](absl::Status status) {
      absl::MutexLock lock(&answer->mu);
      answer->status = std::move(status);
      answer->given.Signal();
    });
    return answer;
  }
  static void Say(const UniqueFd& socket, const FetchPacket& packet) {
    EXPECT_TRUE(control::SendFetchPacket(socket.get(), packet, control::FetchSend::kWait).ok());
  }
  static void SayHave(const UniqueFd& socket, const oci::Digest& blob, uint64_t block,
                      uint64_t inode = 2) {
    FetchHave have{block, {}, {1, inode}};
    have.blocks.set(0);
    Say(socket, {blob, have});
  }
  // The next packet, which must be a want.
  static uint64_t NextWant(const UniqueFd& socket, const oci::Digest& blob) {
    const auto packet = control::ReceiveFetchPacket(socket.get());
    if (!packet.ok() || packet->blob != blob || !std::holds_alternative<FetchWant>(packet->body)) {
      ADD_FAILURE() << packet.status();
      return ~uint64_t{0};
    }
    return std::get<FetchWant>(packet->body).first;
  }

  const oci::Digest one_ = oci::Digest::Of(AsBytes("one")), two_ = oci::Digest::Of(AsBytes("two"));
  FetchClient client_;
};

class ShortGraceTest : public FetchClientTest {
 protected:
  ShortGraceTest() : FetchClientTest(absl::Milliseconds(200)) {}
};

TEST_F(FetchClientTest, EachBlobGetsItsAnswers) {
  ASSERT_TRUE(client_.Start().ok());
  const UniqueFd fetch = Connect();
  const auto one = Open(one_), two = Open(two_);
  const auto first = WhenThere(*one, 7);
  EXPECT_EQ(NextWant(fetch, one_), 7u);
  SayHave(fetch, two_, 7);
  Say(fetch, {one_, FetchFailed{7, 1, PermissionDenied("not yours")}});
  EXPECT_THAT(Message(first->Wait()), HasSubstr("block 7 did not come: not yours"));
  EXPECT_TRUE(WhenThere(*two, 7)->Wait().ok());
  EXPECT_FALSE(one->IsThere(7 * kBlock, 1));
}

TEST_F(FetchClientTest, ReadersOfOneDigestShareWhatIsKnown) {
  ASSERT_TRUE(client_.Start().ok());
  const UniqueFd fetch = Connect();
  const auto a = Open(one_);
  const auto waiting = WhenThere(*a, 0);
  SayHave(fetch, one_, 0);
  EXPECT_TRUE(waiting->Wait().ok());
  auto b = Open(one_);
  EXPECT_TRUE(b->IsThere(0, 1));
  EXPECT_NE(client_.Find(one_), nullptr);
  EXPECT_EQ(client_.Find(two_), nullptr);
}

TEST_F(FetchClientTest, WhatIsLostIsSaidAgainAlsoToTheNextOne) {
  ASSERT_TRUE(client_.Start().ok());
  UniqueFd fetch = Connect();
  const auto blob = Open(one_);
  const auto waiting = WhenThere(*blob, 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(NextWant(fetch, one_), 3u);
  fetch = Connect();
  EXPECT_EQ(NextWant(fetch, one_), 3u);
  SayHave(fetch, one_, 3);
  EXPECT_TRUE(waiting->Wait().ok());
}

TEST_F(FetchClientTest, ANewConnectionMayHaveNewFiles) {
  ASSERT_TRUE(client_.Start().ok());
  UniqueFd fetch = Connect();
  const auto blob = Open(one_);
  const auto waiting = WhenThere(*blob, 3);
  fetch = Connect();
  SayHave(fetch, one_, 3, 77);
  EXPECT_FALSE(waiting->Comes(absl::Milliseconds(200)));
  UseFile(one_, 77);
  SayHave(fetch, one_, 3, 77);
  EXPECT_TRUE(waiting->Wait().ok());
}

TEST_F(FetchClientTest, NothingIsReceivedBeforeTheStart) {
  const auto blob = Open(one_);
  const UniqueFd fetch = Connect();
  SayHave(fetch, one_, 1);
  const auto waiting = WhenThere(*blob, 1);
  EXPECT_FALSE(waiting->Comes(absl::Milliseconds(100)));
  ASSERT_TRUE(client_.Start().ok());
  EXPECT_TRUE(waiting->Wait().ok());
}

TEST_F(ShortGraceTest, WithoutConnectionReadsWaitAndFailAfterTheGrace) {
  const absl::Time begin = absl::Now();
  ASSERT_TRUE(client_.Start().ok());
  const auto blob = Open(one_);
  EXPECT_TRUE(absl::IsUnavailable(WhenThere(*blob, 1)->Wait()));
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(150));
  EXPECT_TRUE(absl::IsUnavailable(WhenThere(*blob, 1)->Wait())) << "at once";
  const UniqueFd fetch = Connect();
  const auto later = WhenThere(*blob, 2);
  EXPECT_EQ(NextWant(fetch, one_), 2u);
  SayHave(fetch, one_, 2);
  EXPECT_TRUE(later->Wait().ok());
}

TEST_F(FetchClientTest, ReadsSurviveAFetcherThatComesBackWithinTheGrace) {
  ASSERT_TRUE(client_.Start().ok());
  UniqueFd fetch = Connect();
  const auto blob = Open(one_);
  const auto waiting = WhenThere(*blob, 2);
  EXPECT_EQ(NextWant(fetch, one_), 2u);
  fetch = UniqueFd();
  EXPECT_FALSE(waiting->Comes(absl::Milliseconds(100)));
  fetch = Connect();
  EXPECT_EQ(NextWant(fetch, one_), 2u);
  SayHave(fetch, one_, 2);
  EXPECT_TRUE(waiting->Wait().ok());
}

TEST_F(ShortGraceTest, WhoTalksNonsenseIsNotHeardAnyMore) {
  ASSERT_TRUE(client_.Start().ok());
  const UniqueFd fetch = Connect();
  const auto blob = Open(one_);
  ASSERT_TRUE(SendPacket(fetch.get(), AsBytes("nonsense")).ok());
  FetchHave have{1, {}, {1, 2}};
  have.blocks.set(0);
  control::SendFetchPacket(fetch.get(), {one_, have}, control::FetchSend::kNoWait).IgnoreError();
  EXPECT_TRUE(absl::IsUnavailable(WhenThere(*blob, 1)->Wait()));
}

TEST_F(FetchClientTest, ADropOfWhatIsNotOpenIsAnswered) {
  ASSERT_TRUE(client_.Start().ok());
  const UniqueFd fetch = Connect();
  Say(fetch, {two_, FetchDrop{5, 9, 77}});
  const auto packet = control::ReceiveFetchPacket(fetch.get());
  ASSERT_TRUE(packet.ok()) << packet.status();
  EXPECT_EQ(packet->blob, two_);
  const auto* const dropped = std::get_if<FetchDropped>(&packet->body);
  ASSERT_NE(dropped, nullptr);
  EXPECT_EQ(dropped->first, 5u);
  EXPECT_EQ(dropped->count, 9u);
  EXPECT_EQ(dropped->question, 77u);
}

TEST_F(FetchClientTest, ASocketThatIsFullHoldsNobodyUp) {
  ASSERT_TRUE(client_.Start().ok());
  const UniqueFd fetch = Connect();
  const auto blob = Open(one_);
  std::vector<std::shared_ptr<Answer>> answers;
  for (uint64_t block = 0; block < kBlocks; block += 2) answers.push_back(WhenThere(*blob, block));
  std::vector<bool> asked(kBlocks);
  for (uint64_t left = answers.size(); left > 0;) {
    const uint64_t block = NextWant(fetch, one_);
    ASSERT_LT(block, kBlocks);
    if (asked[block]) continue;
    asked[block] = true;
    --left;
    SayHave(fetch, one_, block);
  }
  for (const auto& answer : answers) EXPECT_TRUE(answer->Wait().ok());
}

}  // namespace
}  // namespace kapsule::fuse
