#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/http/client.h"
#include "core/http/test_server.h"

namespace kapsule::http {
namespace {

using Answer = TestServer::Answer;

Request Patch(const TestServer& server) {
  Request request;
  request.method = "PATCH";
  request.url = server.origin() + "/upload";
  return request;
}

std::string Pattern(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 131 + i / 251);
  return text;
}

class UploadTest : public ::testing::TestWithParam<bool> {
 protected:
  std::optional<uint64_t> Known(uint64_t size) const {
    return GetParam() ? std::optional(size) : std::nullopt;
  }
};
INSTANTIATE_TEST_SUITE_P(KnownSize, UploadTest, ::testing::Bool());

TEST_P(UploadTest, PiecesOfEverySizeArriveInOrder) {
  TestServer server([](const auto&) { return TestServer::Reply(202); });
  const Client client({});
  for (const size_t piece : {1, 1000, 65536, 1 << 19}) {
    const std::string body = Pattern(piece == 1 ? 3000 : 1'000'000);
    auto upload = client.StartUpload(Patch(server), Known(body.size())).value();
    for (size_t at = 0; at < body.size(); at += piece)
      ASSERT_TRUE(upload->Write(AsBytes(std::string_view(body).substr(at, piece))).ok());
    EXPECT_EQ(upload->Finish()->status, 202);
    EXPECT_TRUE(server.requests().back().body == body) << piece;
  }
}

TEST_P(UploadTest, LargeBodiesArriveWhole) {
  TestServer server([](const auto&) { return TestServer::Reply(202); });
  const std::string piece = Pattern(3 << 20);
  auto upload = Client({}).StartUpload(Patch(server), Known(20 * piece.size())).value();
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(upload->Write(AsBytes(piece)).ok());
  EXPECT_EQ(upload->Finish()->status, 202);
  EXPECT_EQ(server.requests().back().body_size, 20 * piece.size());
}

TEST_P(UploadTest, AnEmptyBodyIsABody) {
  TestServer server([](const auto&) { return TestServer::Reply(202); });
  auto upload = Client({}).StartUpload(Patch(server), Known(0)).value();
  EXPECT_EQ(upload->Finish()->status, 202);
}

TEST_P(UploadTest, AnEarlyAnswerIsReported) {
  TestServer server([](const auto&) {
    return Answer{"HTTP/1.1 413 Large\r\nContent-Length: 3\r\n\r\nbig", Answer::kStall};
  });
  Request request = Patch(server);
  request.headers.Add("X-Early", "1");
  auto upload = Client({}).StartUpload(request, Known(uint64_t{1} << 40)).value();
  const std::string piece(4 << 20, 'x');
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) status = upload->Write(AsBytes(piece));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  const Response response = upload->Finish().value();
  EXPECT_EQ(response.status, 413);
  EXPECT_EQ(response.body, "big");
}

TEST_P(UploadTest, AServerThatReadsNothingIsAStall) {
  TestServer server([](const auto&) { return Answer{"", Answer::kStall}; });
  Options options;
  options.stall_timeout = std::chrono::milliseconds(300);
  Request request = Patch(server);
  request.headers.Add("X-Early", "1");
  auto upload = Client(options).StartUpload(request, Known(uint64_t{1} << 40)).value();
  const std::string piece(4 << 20, 'x');
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) status = upload->Write(AsBytes(piece));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
}

TEST_P(UploadTest, ABrokenConnectionIsUnavailable) {
  TestServer server([](const auto&) { return Answer{"", Answer::kClose}; });
  Request request = Patch(server);
  request.headers.Add("X-Early", "1");
  auto upload = Client({}).StartUpload(request, Known(uint64_t{1} << 40)).value();
  const std::string piece(4 << 20, 'x');
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) status = upload->Write(AsBytes(piece));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

TEST_P(UploadTest, AnUploadThatIsDroppedIsNeverComplete) {
  TestServer server([](const auto&) { return TestServer::Reply(202); });
  const Client client({});
  {
    auto upload = client.StartUpload(Patch(server), Known(20 << 20)).value();
    const std::string piece(3 << 20, 'x');
    ASSERT_TRUE(upload->Write(AsBytes(piece)).ok());
  }
  Request next;
  next.url = server.origin();
  EXPECT_TRUE(client.Send(next, 10).ok());
  for (const TestServer::Request& request : server.requests()) EXPECT_NE(request.method, "PATCH");
}

TEST(UploadTest, PausesOfTheCallerAreNoStall) {
  TestServer server([](const auto&) { return TestServer::Reply(202); });
  Options options;
  options.stall_timeout = std::chrono::milliseconds(1500);
  auto upload = Client(options).StartUpload(Patch(server), std::nullopt).value();
  const std::string piece(2 << 20, 'x');
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(upload->Write(AsBytes(piece)).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(2000));
  }
  EXPECT_EQ(upload->Finish()->status, 202);
}

TEST(UploadTest, KeepsToTheAnnouncedSize) {
  TestServer server([](const auto&) { return TestServer::Reply(202); });
  const Client client({});
  auto more = client.StartUpload(Patch(server), 3).value();
  EXPECT_EQ(more->Write(AsBytes("four")).code(), absl::StatusCode::kInvalidArgument);
  auto fewer = client.StartUpload(Patch(server), 5).value();
  ASSERT_TRUE(fewer->Write(AsBytes("four")).ok());
  EXPECT_EQ(fewer->Finish().status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kapsule::http
