#include "core/control/control_wire.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "core/base/unix_socket.h"

namespace kapsule::control {
namespace {

const std::string kDigest(64, 'a');

v1::DataPlaneRequest OpenOf(const std::string& digest) {
  v1::DataPlaneRequest request;
  request.set_id(7);
  request.mutable_open()->set_digest(digest);
  request.mutable_open()->set_size(100);
  request.mutable_open()->set_encrypted(true);
  request.mutable_open()->set_timeout_ms(1000);
  return request;
}

UniqueFd Null() { return UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

class ControlWireTest : public testing::Test {
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

TEST_F(ControlWireTest, ARequestArrivesWithItsDescriptors) {
  const UniqueFd first = Null(), second = Null();
  ASSERT_TRUE(SendRequest(a(), OpenOf(kDigest), {first.get(), second.get()}).ok());
  const auto got = ReceiveRequest(b());
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->message.open().digest(), kDigest);
  EXPECT_TRUE(got->message.open().encrypted());
  ASSERT_EQ(got->fds.size(), 2u);
  EXPECT_NE(fcntl(got->fds[0].get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_TRUE(CheckRequest(got->message, got->fds.size()).ok());
}

TEST_F(ControlWireTest, ARequestIsRefusedWhereAFieldIsWrong) {
  const UniqueFd fd = Null();
  const std::vector<int> two = {fd.get(), fd.get()};
  for (const std::string& digest :
       {std::string(), std::string(63, 'a'), std::string(65, 'a'), std::string(64, 'A'),
        std::string(63, 'a') + "/", "sha256:" + std::string(57, 'a')})
    EXPECT_EQ(SendRequest(a(), OpenOf(digest), two).code(), absl::StatusCode::kInvalidArgument);
  v1::DataPlaneRequest request = OpenOf(kDigest);
  EXPECT_FALSE(CheckRequest(request, 1).ok());
  EXPECT_FALSE(CheckRequest(request, 3).ok());
  request.mutable_open()->set_size(0);
  EXPECT_FALSE(CheckRequest(request, 2).ok());
  request = OpenOf(kDigest);
  request.mutable_open()->set_timeout_ms(0);
  EXPECT_FALSE(CheckRequest(request, 2).ok());
  request = OpenOf(kDigest);
  request.set_id(0);
  EXPECT_FALSE(CheckRequest(request, 2).ok());
  request.set_id(1);
  request.clear_request();
  EXPECT_FALSE(CheckRequest(request, 0).ok());
  request.mutable_serve();
  EXPECT_TRUE(CheckRequest(request, 0).ok());
  request.mutable_close();
  EXPECT_FALSE(CheckRequest(request, 0).ok());
  request.mutable_use_fetcher();
  EXPECT_FALSE(CheckRequest(request, 0).ok());
  EXPECT_TRUE(CheckRequest(request, 1).ok());
  request.mutable_use_local();
  EXPECT_FALSE(CheckRequest(request, 1).ok());
  request.mutable_use_local()->set_digest(kDigest);
  EXPECT_TRUE(CheckRequest(request, 1).ok());
  EXPECT_FALSE(CheckRequest(request, 0).ok());
  request.mutable_use_file();
  EXPECT_FALSE(CheckRequest(request, 1).ok());
  request.mutable_use_file()->set_digest(kDigest);
  EXPECT_TRUE(CheckRequest(request, 1).ok());
  EXPECT_FALSE(CheckRequest(request, 0).ok());
}

TEST(LayerRecordTest, ARecordKeepsTheAnnotationsAndWhetherItIsRemote) {
  const std::string annotations = R"({"a":"\",\"remote\":true}"})";
  for (const bool remote : {false, true}) {
    const std::string json = RecordToJson({annotations, remote});
    EXPECT_EQ(json, R"({"annotations":)" + annotations +
                        (remote ? R"(,"remote":true})" : R"(,"remote":false})"));
    const auto record = RecordFromJson(json);
    ASSERT_TRUE(record.ok()) << record.status();
    EXPECT_EQ(record->annotations, annotations);
    EXPECT_EQ(record->remote, remote);
    EXPECT_FALSE(RecordFromJson(json.substr(0, json.size() - 1)).ok());
  }
}

TEST(LayerRecordTest, BareAnnotationsAreOfALayerThatIsNotRemote) {
  for (const std::string bare :
       {"{}", R"({"annotations":"x,\"remote\":true"})", R"({"remote":"true"})", ""}) {
    const auto record = RecordFromJson(bare);
    ASSERT_TRUE(record.ok()) << record.status();
    EXPECT_EQ(record->annotations, bare);
    EXPECT_FALSE(record->remote);
  }
}

TEST_F(ControlWireTest, AnErrorKeepsCodeAndMessage) {
  const absl::Status error = NotFound("no key for layer sha256:{}", kDigest);
  ASSERT_TRUE(SendReply(a(), MakeReply(9, error)).ok());
  const auto reply = ReceiveReply(b());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->id(), 9u);
  EXPECT_EQ(StatusOf(*reply), error);
  EXPECT_TRUE(StatusOf(MakeReply(1, absl::OkStatus())).ok());
}

TEST_F(ControlWireTest, AnErrorTextOfAnyBytesIsSentBoundedAndPrintable) {
  const absl::Status error = Internal("{}\n\xff{}", std::string("x"), std::string(100'000, 'y'));
  ASSERT_TRUE(SendReply(a(), MakeReply(1, error)).ok());
  const auto reply = ReceiveReply(b());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->message().size(), kMaxErrorText);
  EXPECT_EQ(reply->message().substr(0, 4), "x??y");
}

TEST_F(ControlWireTest, ACodeThatNobodyKnowsIsUnknown) {
  v1::DataPlaneReply reply = MakeReply(1, absl::OkStatus());
  for (const int code : {-1, 17, 1 << 30}) {
    reply.set_code(code);
    EXPECT_EQ(StatusOf(reply).code(), absl::StatusCode::kUnknown);
  }
}

TEST_F(ControlWireTest, AnyTruncationAndAnythingTooLongIsAnError) {
  const std::string bytes = OpenOf(kDigest).SerializeAsString();
  for (size_t n = 1; n < bytes.size(); ++n) {
    ASSERT_TRUE(SendPacket(a(), AsBytes(bytes).first(n)).ok());
    const auto got = ReceiveRequest(b());
    EXPECT_FALSE(got.ok() && CheckRequest(got->message, 2).ok()) << n;
  }
  ASSERT_TRUE(SendPacket(a(), AsBytes(std::string(kMaxMessageBytes + 1, '\0'))).ok());
  EXPECT_EQ(ReceiveRequest(b()).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(SendPacket(a(), AsBytes("no protobuf at all")).ok());
  EXPECT_EQ(ReceiveReply(b()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ControlWireTest, AClosedPeerIsUnavailable) {
  pair_.theirs.reset();
  EXPECT_EQ(ReceiveReply(a()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(SendReply(a(), MakeReply(1, absl::OkStatus())).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace kapsule::control
