// BlobRanges against hosts that refuse or lie.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/registry/blob_ranges.h"
#include "core/registry/test_blobs.h"

namespace kapsule::registry {
namespace {

using http::TestServer;
using Answer = TestServer::Answer;
using Request = TestServer::Request;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string& Content() {
  static const auto* const content = new std::string(TestBytes(100'000));
  return *content;
}

// Bytes 10 to 19 from a server that gives `answer` to everything.
ReadResult ReadFrom(const Answer& answer, std::chrono::milliseconds stall = kNoStall) {
  TestServer server([&](const Request&) { return answer; });
  const auto ranges =
      OpenRanges(Content(), HostsOf({&server}), NoCredentials, {.max_rounds = 1}, stall);
  ReadResult result = ReadRange(*ranges, 10, 10);
  EXPECT_FALSE(result.status.ok());
  EXPECT_THAT(Message(result.status),
              AllOf(HasSubstr("acme/tiny@sha256:"), HasSubstr(ranges->blob().host)));
  return result;
}

Answer Part(const std::string& content_range, const std::string& body) {
  return TestServer::Reply(206, body, "Content-Range: " + content_range + "\r\n");
}

TEST(RangeRefusalTest, EveryRefusalHasItsCode) {
  const std::pair<int, absl::StatusCode> codes[] = {
      {400, absl::StatusCode::kFailedPrecondition}, {401, absl::StatusCode::kPermissionDenied},
      {403, absl::StatusCode::kPermissionDenied},   {404, absl::StatusCode::kNotFound},
      {416, absl::StatusCode::kDataLoss},           {429, absl::StatusCode::kUnavailable},
      {500, absl::StatusCode::kUnavailable},
  };
  for (const auto& [status, code] : codes) {
    const ReadResult result = ReadFrom(
        TestServer::Reply(status, R"({"errors":[{"code":"WORD","message":"for people"}]})"));
    EXPECT_EQ(result.status.code(), code) << result.status;
    EXPECT_THAT(Message(result.status), HasSubstr(fmt::format("answered {}", status)));
  }
}

TEST(RangeRefusalTest, FinalRefusalsAreNotAskedAgain) {
  for (const int status : {401, 403, 404, 416}) {
    TestServer server([&](const Request&) { return TestServer::Reply(status); });
    const auto ranges = OpenRanges(Content(), HostsOf({&server}));
    EXPECT_FALSE(ReadRange(*ranges, 0, 1).status.ok());
    EXPECT_EQ(server.requests().size(), 1u) << status;
  }
}

TEST(RangeRefusalTest, TheRegistrysWordCountsAndTheMirrorsIsTold) {
  TestServer mirror([](const Request&) { return TestServer::Reply(503); });
  TestServer registry([](const Request&) { return TestServer::Reply(404); });
  const auto ranges = OpenRanges(Content(), HostsOf({&mirror, &registry}));
  const ReadResult result = ReadRange(*ranges, 0, 1);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(result.status),
              AllOf(HasSubstr(fmt::format("127.0.0.1:{} answered 404", registry.port())),
                    HasSubstr(fmt::format("127.0.0.1:{} answered 503", mirror.port()))));
}

TEST(RangeLieTest, AnotherContentRangeIsDataLoss) {
  const std::string ten(10, 'x');
  for (const std::string range :
       {"bytes 11-20/100000", "bytes 0-9/100000", "bytes 10-18/100000", "bytes 10-20/100000",
        "bytes 10-19/100001", "bytes 10-19/99999", "bytes 10-19", "10-19/100000", "bytes */100000",
        "bytes 10-19/1e5", "bytes 10-19/-1", "bytes 10-19/18446744073809551617", ""}) {
    const ReadResult result = ReadFrom(Part(range, ten));
    EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss) << range;
    EXPECT_THAT(Message(result.status), HasSubstr("in place of \"bytes 10-19/100000\""));
    EXPECT_EQ(result.bytes, "") << range;
  }
  EXPECT_EQ(ReadFrom(TestServer::Reply(206, ten)).status.code(), absl::StatusCode::kDataLoss);
}

TEST(RangeLieTest, AnUnknownTotalIsNoLie) {
  TestServer server([](const Request&) { return Part("bytes 10-19/*", std::string(10, 'x')); });
  const auto ranges = OpenRanges(Content(), HostsOf({&server}));
  EXPECT_TRUE(ReadRange(*ranges, 10, 10).status.ok());
}

TEST(RangeLieTest, AnotherLengthIsDataLoss) {
  for (const size_t size : {0, 9, 11}) {
    const ReadResult result = ReadFrom(Part("bytes 10-19/100000", std::string(size, 'x')));
    EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss) << size;
    EXPECT_THAT(Message(result.status),
                HasSubstr(fmt::format("Content-Length {} in place of 10", size)));
    EXPECT_EQ(result.bytes, "") << size;
  }
}

TEST(RangeLieTest, ABodyThatEndsTooEarlyIsUnavailable) {
  const std::string head = "HTTP/1.1 206 Part\r\nContent-Range: bytes 10-19/100000\r\n";
  for (const std::string body :
       {"Content-Length: 10\r\n\r\n", "\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}) {
    const ReadResult result = ReadFrom({head + body, Answer::kClose});
    EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable) << result.status;
  }
}

TEST(RangeLieTest, AnEndlessBodyIsCutOff) {
  const ReadResult result = ReadFrom(
      {"HTTP/1.1 206 Part\r\nContent-Range: bytes 10-19/100000\r\n\r\nx", Answer::kRepeat});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss) << result.status;
  EXPECT_THAT(Message(result.status), HasSubstr("more than the 10 bytes"));
  EXPECT_EQ(result.bytes.size(), 10u);
}

TEST(RangeLieTest, ACodingNobodyAskedForIsDataLoss) {
  const ReadResult result = ReadFrom(TestServer::Reply(206, std::string(10, 'x'),
                                                       "Content-Range: bytes 10-19/100000\r\n"
                                                       "Content-Encoding: gzip\r\n"));
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss) << result.status;
}

TEST(RangeLieTest, ATrickleAndEndlessHeadersAreCutOff) {
  const std::string head = "HTTP/1.1 206 Part\r\n";
  const std::pair<Answer, absl::StatusCode> cases[] = {
      {{head + "X-Slow: x", Answer::kTrickle}, absl::StatusCode::kDeadlineExceeded},
      {{head + "Content-Range: bytes 10-19/100000\r\n\r\nx", Answer::kTrickle},
       absl::StatusCode::kDataLoss},  // ten bytes come, and more
      {{"HTTP/1.1 102 Processing\r\n\r\n", Answer::kRepeat}, absl::StatusCode::kResourceExhausted},
      {{head + std::string(200'000, 'x') + ": y\r\n\r\n"}, absl::StatusCode::kResourceExhausted},
  };
  for (const auto& [answer, code] : cases) {
    const bool stalls = code == absl::StatusCode::kDeadlineExceeded;
    EXPECT_EQ(ReadFrom(answer, stalls ? kShortStall : kNoStall).status.code(), code)
        << answer.bytes.substr(0, 60);
  }
}

TEST(RangeLieTest, OtherSuccessesAreDataLoss) {
  for (const int status : {201, 202, 203}) {
    EXPECT_EQ(ReadFrom(TestServer::Reply(status, std::string(10, 'x'))).status.code(),
              absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(ReadFrom({"HTTP/1.1 204 None\r\n\r\n"}).status.code(), absl::StatusCode::kDataLoss);
}

TEST(RangeLieTest, NoByteOfALyingMirrorIsTaken) {
  TestServer mirror([](const Request&) { return Part("bytes 0-9/100000", "0123456789"); });
  TestServer registry([](const Request& r) { return AnswerRange(r, Content()); });
  const auto ranges = OpenRanges(Content(), HostsOf({&mirror, &registry}));
  const ReadResult result = ReadRange(*ranges, 10, 10);
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, Content().substr(10, 10));
}

// A host that sends whole blobs.
class WholeBlobTest : public ::testing::Test {
 protected:
  TestServer server_{[](const Request&) { return TestServer::Reply(200, Content()); }};
  std::unique_ptr<BlobRanges> ranges_ =
      OpenRanges(Content(), HostsOf({&server_}), NoCredentials, {.max_skip = 5000});
};

TEST_F(WholeBlobTest, TheBeginningIsTakenAndTheRestCutOff) {
  for (const uint64_t offset : {0, 1, 5000}) {
    const ReadResult result = ReadRange(*ranges_, offset, 100);
    EXPECT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.bytes, Content().substr(offset, 100));
  }
}

TEST_F(WholeBlobTest, TheWholeBlobLeavesTheConnection) {
  for (int i = 0; i < 2; ++i)
    EXPECT_TRUE(ReadRange(*ranges_, 0, Content().size()).bytes == Content());
  EXPECT_EQ(server_.connections(), 1u);
}

TEST_F(WholeBlobTest, FurtherRangesAreNotAskedForAgain) {
  for (int i = 0; i < 3; ++i) {
    const ReadResult result = ReadRange(*ranges_, 5001, 100);
    EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(result.status), HasSubstr("does not do ranges"));
  }
  EXPECT_EQ(server_.requests().size(), 1u);
  EXPECT_TRUE(ReadRange(*ranges_, 5000, 100).status.ok());
}

TEST_F(WholeBlobTest, AnotherSizeIsDataLoss) {
  TestServer server([](const Request&) { return TestServer::Reply(200, "short"); });
  const ReadResult result = ReadRange(*OpenRanges(Content(), HostsOf({&server})), 0, 3);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(result.status), HasSubstr("Content-Length 5 in place of 100000"));
}

TEST_F(WholeBlobTest, AnEndlessBlobIsCutOff) {
  TestServer server([](const Request&) {
    return Answer{"HTTP/1.1 200 OK\r\n\r\nx", Answer::kRepeat};
  });
  EXPECT_EQ(ReadRange(*OpenRanges(Content(), HostsOf({&server})), 5, 3).bytes.size(), 3u);
}

}  // namespace
}  // namespace kapsule::registry
