#include "snapshotter/control_channel.h"

#include <absl/time/clock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>

namespace kapsule::snapshotter {
namespace {

// The error that a call gives where kapsule-fuse answers with `text`.
absl::Status ErrorOf(const std::string& text) {
  control::SocketPair pair = control::MakeSocketPair().value();
  ControlChannel channel(std::move(pair.ours), [] {});
  std::thread peer([&] {
    const auto request = control::ReceiveRequest(pair.theirs.get());
    v1::DataPlaneReply reply;
    reply.set_id(request->message.id());
    reply.set_code(static_cast<int>(absl::StatusCode::kDataLoss));
    reply.set_message(text);
    EXPECT_TRUE(control::SendReply(pair.theirs.get(), reply).ok());
  });
  v1::DataPlaneRequest request;
  request.mutable_close()->set_digest(std::string(64, 'a'));
  const absl::Status status = channel.Call(request, {}, absl::Now() + absl::Seconds(10)).status();
  peer.join();
  return status;
}

TEST(ControlChannelTest, AnErrorKeepsItsCodeAndItsWords) {
  EXPECT_EQ(ErrorOf("chunk 3: bad tag ~"), absl::DataLossError("chunk 3: bad tag ~"));
}

TEST(ControlChannelTest, WhatThePeerSaysIsMadePrintable) {
  EXPECT_EQ(ErrorOf("a\nb\x1b[31m\x7f\xc3\xa9"), absl::DataLossError("a?b?[31m???"));
}

TEST(ControlChannelTest, WhatThePeerSaysIsBounded) {
  constexpr size_t kMax = kMaxPeerText;
  for (const size_t size : {kMax - 1, kMax, kMax + 1, 4 * kMax})
    EXPECT_EQ(ErrorOf(std::string(size, 'x')).message().size(), std::min(size, kMax)) << size;
}

TEST(ControlChannelTest, WhereNothingCanBeSentItHasEnded) {
  const control::SocketPair pair = control::MakeSocketPair().value();
  std::atomic<bool> ended = false;
  ControlChannel channel(pair.ours.Duplicate().value(), [&] { ended = true; });
  // To whoever reads here, unlike to whoever sends, the peer seems to be there still.
  ASSERT_EQ(shutdown(pair.theirs.get(), SHUT_RD), 0);
  v1::DataPlaneRequest request;
  request.mutable_serve();
  const auto reply = channel.Call(request, {}, absl::Now() + absl::Seconds(30));
  EXPECT_TRUE(absl::IsUnavailable(reply.status())) << reply.status();
  EXPECT_TRUE(channel.ended()) << "whoever asks another one then asks this one";
  channel.Close();
  EXPECT_TRUE(ended);
}

TEST(ControlChannelTest, ACallToADyingPeerFindsThatItHasEnded) {
  for (int i = 0; i < 200; ++i) {
    control::SocketPair pair = control::MakeSocketPair().value();
    ControlChannel channel(std::move(pair.ours), [] {});
    pair.theirs.reset();
    v1::DataPlaneRequest request;
    request.mutable_serve();
    const auto reply = channel.Call(request, {}, absl::Now() + absl::Seconds(30));
    ASSERT_TRUE(absl::IsUnavailable(reply.status())) << reply.status();
    ASSERT_TRUE(channel.ended());
  }
}

}  // namespace
}  // namespace kapsule::snapshotter
