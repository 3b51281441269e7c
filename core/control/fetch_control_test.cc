#include "core/control/fetch_control.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "core/base/unix_socket.h"
#include "core/control/control_wire.h"

namespace kapsule::control {
namespace {

const std::string kDigest(64, 'a');

v1::FetchRequest OpenOf() {
  v1::FetchRequest request;
  request.set_id(7);
  v1::FetchOpen& open = *request.mutable_open();
  open.set_digest(kDigest);
  open.set_size(1000);
  open.mutable_index()->set_version(1);
  open.mutable_index()->set_header_offset(744);
  open.mutable_index()->set_header_length(256);
  open.mutable_index()->set_root(std::string(64, 'b'));
  open.add_sources("registry.example/models/x:1");
  open.set_timeout_ms(1000);
  return request;
}

class FetchControlTest : public testing::Test {
 protected:
  void SetUp() override {
    auto pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    pair_ = std::move(*pair);
  }
  int a() const { return pair_.ours.get(); }
  int b() const { return pair_.theirs.get(); }
  SocketPair pair_;
};

TEST_F(FetchControlTest, ARequestArrivesAndItsReplyBringsTheFile) {
  ASSERT_TRUE(SendFetchRequest(a(), OpenOf(), {}).ok());
  const auto got = ReceiveFetchRequest(b());
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(CheckFetchRequest(got->message, got->fds.size()).ok());
  EXPECT_EQ(got->message.open().sources(0), "registry.example/models/x:1");

  const UniqueFd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(SendFetchReply(b(), MakeFetchReply(7, absl::OkStatus()), {file.get()}).ok());
  const auto reply = ReceiveFetchReply(a());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->message.id(), 7u);
  EXPECT_TRUE(StatusOf(reply->message).ok());
  EXPECT_EQ(reply->fds.size(), 1u);
}

TEST_F(FetchControlTest, ConnectTakesOneDescriptorAndTheOthersNone) {
  v1::FetchRequest request;
  request.set_id(1);
  request.mutable_connect();
  EXPECT_FALSE(CheckFetchRequest(request, 0).ok());
  EXPECT_TRUE(CheckFetchRequest(request, 1).ok());
  EXPECT_FALSE(CheckFetchRequest(request, 2).ok());
  EXPECT_FALSE(CheckFetchRequest(OpenOf(), 1).ok());
  request.mutable_get_stats();
  EXPECT_TRUE(CheckFetchRequest(request, 0).ok());
}

TEST_F(FetchControlTest, ARequestIsRefusedWhereAFieldIsWrong) {
  const auto refused = [](auto&& change) {
    v1::FetchRequest request = OpenOf();
    change(request);
    return CheckFetchRequest(request, 0).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](auto& r) { r.set_id(0); }));
  EXPECT_TRUE(refused([](auto& r) { r.clear_request(); }));
  EXPECT_TRUE(refused([](auto& r) { r.mutable_open()->set_size(0); }));
  EXPECT_TRUE(refused([](auto& r) { r.mutable_open()->set_timeout_ms(0); }));
  EXPECT_TRUE(refused([](auto& r) { r.mutable_open()->clear_sources(); }));
  EXPECT_TRUE(refused([](auto& r) { r.mutable_open()->clear_index(); }));
  EXPECT_TRUE(refused([](auto& r) { r.mutable_open()->add_credentials(); }));
  EXPECT_TRUE(refused([](auto& r) {
    for (int i = 0; i < 16; ++i) r.mutable_open()->add_sources("x");
  }));
  EXPECT_TRUE(refused([](auto& r) { r.mutable_close()->set_digest("../../etc"); }));
  EXPECT_TRUE(refused([](auto& r) { r.mutable_forget()->set_digest(std::string(64, 'A')); }));
}

TEST_F(FetchControlTest, WhatIsTooLongIsRefusedAtBothEnds) {
  v1::FetchRequest request = OpenOf();
  request.mutable_open()->add_credentials()->set_place("h");
  request.mutable_open()->mutable_credentials(0)->set_password(std::string(70'000, 'x'));
  EXPECT_EQ(SendFetchRequest(a(), request, {}).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(SendPacket(a(), AsBytes(request.SerializeAsString())).ok());
  EXPECT_EQ(ReceiveFetchRequest(b()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FetchControlTest, AFailureWithADescriptorIsNoReply) {
  const UniqueFd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(SendFetchReply(b(), MakeFetchReply(7, NotFound("x")), {file.get()}).ok());
  EXPECT_EQ(ReceiveFetchReply(a()).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kapsule::control
