#include "core/control/fetch_wire.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <tuple>

#include "core/base/unix_socket.h"

namespace kapsule::control {
namespace {

const oci::Digest kBlob = oci::Digest::Of(AsBytes("blob"));

std::vector<FetchPacket> AllKinds() {
  FetchHave have{2048, {}, {7, 8}};
  for (const size_t i : {0, 7, 8, 2047}) have.blocks.set(i);
  return {{kBlob, FetchWant{0, 1}},
          {kBlob, FetchWant{kMaxFetchBlock - 2047, 2048}},
          {kBlob, FetchSuspect{kMaxFetchBlock}},
          {kBlob, FetchDropped{7, 9, uint64_t{1} << 40}},
          {kBlob, have},
          {kBlob, FetchFailed{3, 4, NotFound("no such blob")}},
          {kBlob, FetchChecked{5, {1, ~uint64_t{0}}}},
          {kBlob, FetchDrop{1 << 20, 2, ~uint64_t{0}}}};
}

class FetchWireTest : public testing::Test {
 protected:
  void SetUp() override {
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    a_ = UniqueFd(fds[0]);
    b_ = UniqueFd(fds[1]);
  }
  UniqueFd a_, b_;
};

TEST_F(FetchWireTest, EveryKindArrivesAsItWasSent) {
  for (const FetchPacket& packet : AllKinds()) {
    ASSERT_TRUE(SendFetchPacket(a_.get(), packet, FetchSend::kWait).ok());
    const auto got = ReceiveFetchPacket(b_.get());
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->blob, kBlob);
    EXPECT_EQ(got->body.index(), packet.body.index());
    EXPECT_EQ(EncodeFetchPacket(*got), EncodeFetchPacket(packet));
  }
}

TEST_F(FetchWireTest, TheBitsOfHaveAreThoseThatWereSet) {
  FetchHave have{4096, {}, {uint64_t{1} << 63, 5}};
  have.blocks.set(1).set(9).set(2040);
  const auto got = DecodeFetchPacket(EncodeFetchPacket({kBlob, have}));
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(std::get<FetchHave>(got->body).first, 4096u);
  EXPECT_EQ(std::get<FetchHave>(got->body).blocks, have.blocks);
  EXPECT_EQ(std::get<FetchHave>(got->body).file, have.file);
}

TEST_F(FetchWireTest, AnAnswerNamesItsQuestion) {
  const auto drop = DecodeFetchPacket(EncodeFetchPacket({kBlob, FetchDrop{3, 4, 5}}));
  const auto dropped = DecodeFetchPacket(EncodeFetchPacket({kBlob, FetchDropped{3, 4, 6}}));
  ASSERT_TRUE(drop.ok() && dropped.ok());
  EXPECT_EQ(std::get<FetchDrop>(drop->body).question, 5u);
  EXPECT_EQ(std::get<FetchDropped>(dropped->body).question, 6u);
  EXPECT_EQ(std::get<FetchDropped>(dropped->body).count, 4u);
}

TEST_F(FetchWireTest, AnErrorKeepsItsCodeAndABoundedPrintableText) {
  const auto why = PermissionDenied("no\x1b[1m {}", std::string(2000, 'x'));
  const auto got = DecodeFetchPacket(EncodeFetchPacket({kBlob, FetchFailed{1, 2, why}}));
  ASSERT_TRUE(got.ok()) << got.status();
  const auto& failed = std::get<FetchFailed>(got->body);
  EXPECT_EQ(failed.why.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Message(failed.why).size(), kMaxFetchText);
  EXPECT_EQ(Message(failed.why).substr(0, 5), "no?[1");
}

TEST_F(FetchWireTest, NoPacketIsLongerThanTheLimit) {
  for (const FetchPacket& packet : AllKinds())
    EXPECT_LE(EncodeFetchPacket(packet).size(), kMaxFetchPacket);
  const FetchFailed longest{0, 1, Internal("{}", std::string(5000, 'x'))};
  EXPECT_LE(EncodeFetchPacket({kBlob, longest}).size(), kMaxFetchPacket);
}

TEST_F(FetchWireTest, AnyOtherLengthOfAFixedPacketIsRefused) {
  for (const FetchPacket& packet : AllKinds()) {
    Bytes bytes = EncodeFetchPacket(packet);
    const bool has_text = std::holds_alternative<FetchFailed>(packet.body);
    for (size_t n = 0; n < bytes.size(); ++n) {
      const bool ok = DecodeFetchPacket(ByteSpan(bytes).first(n)).ok();
      EXPECT_EQ(ok, has_text && n >= 56) << packet.body.index() << " of " << n;
    }
    bytes.resize(kMaxFetchPacket);
    EXPECT_FALSE(DecodeFetchPacket(bytes).ok());
  }
}

TEST_F(FetchWireTest, CountsAndBlocksOutOfRangeAreRefused) {
  for (const auto& [first, count] :
       std::vector<std::pair<uint64_t, uint32_t>>{{0, 0},
                                                  {0, kMaxFetchBlocks + 1},
                                                  {0, ~0u},
                                                  {kMaxFetchBlock + 1, 1},
                                                  {kMaxFetchBlock, 2},
                                                  {~uint64_t{0}, 2}}) {
    EXPECT_FALSE(DecodeFetchPacket(EncodeFetchPacket({kBlob, FetchWant{first, count}})).ok());
    EXPECT_FALSE(DecodeFetchPacket(EncodeFetchPacket({kBlob, FetchDrop{first, count, 1}})).ok());
  }
  EXPECT_FALSE(DecodeFetchPacket(EncodeFetchPacket({kBlob, FetchSuspect{~uint64_t{0}}})).ok());
  EXPECT_FALSE(DecodeFetchPacket(EncodeFetchPacket({kBlob, FetchHave{~uint64_t{0}, {}}})).ok());
}

TEST_F(FetchWireTest, UnknownKindsCodesAndVersionsAreRefused) {
  Bytes bytes = EncodeFetchPacket({kBlob, FetchWant{}});
  for (const int kind : {0, 8, 255}) {
    bytes[0] = std::byte(kind);
    EXPECT_FALSE(DecodeFetchPacket(bytes).ok());
  }
  bytes = EncodeFetchPacket({kBlob, FetchWant{}});
  bytes[3] = std::byte{1};
  EXPECT_FALSE(DecodeFetchPacket(bytes).ok());
  bytes = EncodeFetchPacket({kBlob, FetchFailed{0, 1, NotFound("x")}});
  for (const uint32_t code : {0u, 17u, ~0u}) {
    StoreLe(bytes.data() + 52, code);
    EXPECT_FALSE(DecodeFetchPacket(bytes).ok());
  }
}

TEST_F(FetchWireTest, AFullSocketIsToldAndAClosedOneToo) {
  absl::Status status;
  for (int i = 0; i < 100'000 && status.ok(); ++i)
    status = SendFetchPacket(a_.get(), {kBlob, FetchWant{}}, FetchSend::kNoWait);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  b_.reset();
  EXPECT_TRUE(
      absl::IsUnavailable(SendFetchPacket(a_.get(), {kBlob, FetchWant{}}, FetchSend::kWait)));
  EXPECT_TRUE(absl::IsUnavailable(ReceiveFetchPacket(a_.get()).status()));
}

}  // namespace
}  // namespace kapsule::control
