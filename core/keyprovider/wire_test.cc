#include "core/keyprovider/wire.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <thread>

#include "core/base/unix_socket.h"
#include "core/keyprovider/wire_frames.h"

namespace kapsule::keyprovider {
namespace {

using ::testing::HasSubstr;

UnwrappedLayer TestLayer(bool with_index) {
  UnwrappedLayer layer{crypt::LayerKey::Generate().value(), std::nullopt};
  if (with_index) layer.index = {1, 655360, 256, oci::Digest::Of(AsBytes("header"))};
  return layer;
}

class WireTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(folder_.data()), nullptr);
    path_ = folder_ + "/keys.sock";
  }
  void TearDown() override {
    if (server_.joinable()) server_.join();
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  // Serves one connection.
  void Serve(const std::function<void(int)>& serve) {
    listener_ = ListenUnix(path_, SOCK_SEQPACKET, 0600).value();
    server_ = std::thread([this, serve] {
      const UniqueFd connection(accept(listener_.get(), nullptr, nullptr));
      EXPECT_TRUE(SetTimeout(connection.get(), 30'000).ok());
      serve(connection.get());
    });
  }

  absl::StatusOr<UnwrappedLayer> Ask(const std::string& json = "{}", int timeout_ms = 30'000) {
    const UniqueFd fd = SealedMemfd("annotations", AsBytes(json)).value();
    return Unwrap(path_, fd.get(), timeout_ms);
  }

  // What ReceiveRequest makes of a packet.
  absl::Status Receive(ByteSpan frame, const std::vector<int>& fds) {
    int pair[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    const UniqueFd ours(pair[0]), theirs(pair[1]);
    EXPECT_TRUE(SendPacket(ours.get(), frame, fds).ok());
    return ReceiveRequest(theirs.get()).status();
  }

  std::string folder_ = "/tmp/kapsule-wire-XXXXXX";
  std::string path_;
  UniqueFd listener_;
  std::thread server_;
};

TEST_F(WireTest, ALayerKeyComesBackWithAndWithoutIndex) {
  for (const bool with_index : {false, true}) {
    const UnwrappedLayer layer = TestLayer(with_index);
    const oci::Annotations annotations = {{"a", "1"}, {"b", "\"ü\n"}};
    Serve([&](int connection) {
      const WireRequest request = ReceiveRequest(connection).value();
      EXPECT_EQ(AnnotationsFromJson(request.annotations_json).value(), annotations);
      EXPECT_TRUE(SendReply(connection, UnwrappedLayer{layer.key.Clone(), layer.index}).ok());
    });
    const UnwrappedLayer answer = Ask(AnnotationsToJson(annotations)).value();
    EXPECT_TRUE(answer.key.key.Equals(layer.key.key.bytes()));
    EXPECT_TRUE(answer.key.nonce.Equals(layer.key.nonce.bytes()));
    EXPECT_EQ(answer.index, layer.index);
    server_.join();
    listener_.reset();
  }
}

TEST_F(WireTest, TheProvidersErrorKeepsCodeAndMessage) {
  Serve([](int connection) {
    EXPECT_TRUE(ReceiveRequest(connection).ok());
    EXPECT_TRUE(SendReply(connection, NotFound("no key for it")).ok());
  });
  EXPECT_EQ(Ask().status(), absl::NotFoundError("no key for it"));
}

TEST_F(WireTest, FourMebibytesOfAnnotationsPassAndAByteMoreDoesNot) {
  const auto json = [](size_t size) { return "{\"a\":\"" + std::string(size - 8, 'x') + "\"}"; };
  Serve([](int connection) {
    const WireRequest request = ReceiveRequest(connection).value();
    EXPECT_TRUE(AnnotationsFromJson(request.annotations_json).ok());
    EXPECT_TRUE(SendReply(connection, TestLayer(false)).ok());
  });
  EXPECT_TRUE(Ask(json(kMaxAnnotationBytes)).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Ask(json(kMaxAnnotationBytes + 1)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(AnnotationsFromJson(json(kMaxAnnotationBytes + 1)).status()));
}

TEST_F(WireTest, NobodyThereIsUnavailableAndNamesTheSocket) {
  const absl::Status none = Ask().status();
  EXPECT_TRUE(absl::IsUnavailable(none)) << none;
  EXPECT_THAT(Message(none), HasSubstr(path_));
  ListenUnix(path_, SOCK_SEQPACKET, 0600).value();  // closed again: a stale file
  const absl::Status stale = Ask().status();
  EXPECT_TRUE(absl::IsUnavailable(stale)) << stale;
  EXPECT_THAT(Message(stale), HasSubstr(path_));
}

TEST_F(WireTest, AProviderThatHangsUpIsUnavailable) {
  Serve([](int connection) { EXPECT_TRUE(ReceiveRequest(connection).ok()); });
  EXPECT_TRUE(absl::IsUnavailable(Ask().status()));
}

TEST_F(WireTest, TheTimeoutCoversASilentProviderAndAFullQueue) {
  const auto start = std::chrono::steady_clock::now();
  listener_ = ListenUnix(path_, SOCK_SEQPACKET, 0600).value();
  ASSERT_EQ(listen(listener_.get(), 0), 0);  // one may wait, as the first then does
  EXPECT_TRUE(absl::IsDeadlineExceeded(Ask("{}", 100).status()));
  const absl::Status full = Ask("{}", 100).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(full)) << full;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST_F(WireTest, BrokenRepliesAreErrors) {
  const Secret good = EncodeReply(TestLayer(true));
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(DecodeReply(good.bytes().first(size)).ok()) << size;
  const auto with = [&](size_t at, std::byte value) {
    Secret frame = good.Clone();
    frame.bytes()[at] = value;
    return DecodeReply(frame.bytes()).status();
  };
  for (const size_t at : {0, 4, 8, 64, 120}) EXPECT_FALSE(with(at, std::byte{17}).ok()) << at;
  const Secret longest = EncodeReply(NotFound("{}", std::string(5000, 'x')));
  EXPECT_EQ(longest.size(), kMaxReplyBytes);
  EXPECT_EQ(Message(DecodeReply(longest.bytes()).status()).size(), kMaxReplyMessage);
}

TEST_F(WireTest, BrokenRequestsAreInvalid) {
  const UniqueFd fd = SealedMemfd("annotations", AsBytes("{}")).value();
  const auto good = EncodeRequest(2);
  ASSERT_TRUE(Receive(good, {fd.get()}).ok());
  for (size_t size = 1; size < good.size(); ++size)
    EXPECT_TRUE(absl::IsInvalidArgument(Receive(ByteSpan(good).first(size), {fd.get()}))) << size;
  for (size_t at = 0; at < good.size(); ++at) {
    auto bad = good;
    bad[at] ^= std::byte{1};
    EXPECT_TRUE(absl::IsInvalidArgument(Receive(bad, {fd.get()}))) << at;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Receive(good, {})));
  EXPECT_TRUE(absl::IsInvalidArgument(Receive(good, {fd.get(), fd.get()})));
  EXPECT_TRUE(absl::IsInvalidArgument(Receive(EncodeRequest(3), {fd.get()})));
  EXPECT_TRUE(absl::IsInvalidArgument(Receive(EncodeRequest(kMaxAnnotationBytes + 1), {fd.get()})));
}

TEST_F(WireTest, AFileThatCouldStillChangeIsRefused) {
  const UniqueFd file = OpenFile(folder_ + "/file", O_RDWR | O_CREAT, 0600).value();
  ASSERT_TRUE(WriteAll(file.get(), AsBytes("{}")).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Receive(EncodeRequest(2), {file.get()})));
  const UniqueFd unsealed(memfd_create("annotations", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_TRUE(WriteAll(unsealed.get(), AsBytes("{}")).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Receive(EncodeRequest(2), {unsealed.get()})));
}

TEST(AnnotationsJsonTest, OnlyObjectsOfStrings) {
  for (const char* bad : {"", "[]", "{\"a\":1}", "{\"a\":null}", "{\"a\":\"b\",\"a\":\"c\"}", "{"})
    EXPECT_TRUE(absl::IsInvalidArgument(AnnotationsFromJson(bad).status())) << bad;
  for (const char* bad :
       {"{}{}", "7", "\"a\"", "null", "{\"a\":{\"b\":\"c\"}}", "{\"a\":[]}", "[[[["})
    EXPECT_TRUE(absl::IsInvalidArgument(AnnotationsFromJson(bad).status())) << bad;
  EXPECT_TRUE(AnnotationsFromJson("{}").value().empty());
}

TEST(AnnotationsJsonTest, TimeDoesNotGrowWithTheSquareOfTheirNumber) {
  oci::Annotations annotations;
  for (int i = 0; i < 300'000; ++i) annotations[std::to_string(i)] = "";
  const std::string json = AnnotationsToJson(annotations);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(AnnotationsFromJson(json).value(), annotations);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));  // else minutes
}

}  // namespace
}  // namespace kapsule::keyprovider
