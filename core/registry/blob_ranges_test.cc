#include "core/registry/blob_ranges.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "core/registry/test_blobs.h"

namespace kapsule::registry {
namespace {

using http::TestServer;
using Answer = TestServer::Answer;
using Request = TestServer::Request;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string& Content() {
  static const auto* const content = new std::string(TestBytes(3'000'000));
  return *content;
}

class BlobRangesTest : public ::testing::Test {
 protected:
  static Answer Serve(const Request& request) { return AnswerRange(request, Content()); }
  // Reads at an odd place and expects the truth.
  static void ExpectTruth(BlobRanges& ranges, uint64_t offset = 1'000'001, uint64_t size = 777) {
    const ReadResult result = ReadRange(ranges, offset, size);
    EXPECT_TRUE(result.status.ok()) << result.status;
    EXPECT_TRUE(result.bytes == Content().substr(offset, size));
  }
};

TEST_F(BlobRangesTest, ReadsExactlyTheRange) {
  TestServer server(Serve);
  const auto ranges = OpenRanges(Content(), HostsOf({&server}));
  ExpectTruth(*ranges);
  ExpectTruth(*ranges, 0, 1);
  ExpectTruth(*ranges, 2'999'999, 1);
  ExpectTruth(*ranges, 0, 3'000'000);
  ExpectTruth(*ranges, 17, 0);
  EXPECT_EQ(server.requests().at(0).target,
            "/v2/acme/tiny/blobs/" + oci::Digest::Of(AsBytes(Content())).text());
  EXPECT_EQ(server.requests().at(0).headers.at("range"), "bytes=1000001-1000777");
  EXPECT_EQ(server.connections(), 1u);
}

TEST_F(BlobRangesTest, ARangeOutsideTheBlobIsRefusedWithoutARequest) {
  TestServer server(Serve);
  const auto ranges = OpenRanges(Content(), HostsOf({&server}));
  EXPECT_EQ(ReadRange(*ranges, 2'999'999, 2).status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(ReadRange(*ranges, ~uint64_t{0}, 2).status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(server.requests().empty());
}

TEST_F(BlobRangesTest, TheFirstBytesComeBeforeTheLast) {
  TestServer server([](const Request&) {
    return Answer{
        "HTTP/1.1 206 Part\r\nContent-Range: bytes 0-999999/3000000\r\n"
        "Content-Length: 1000000\r\n\r\n" +
            Content().substr(0, 100),
        Answer::kStall};
  });
  const auto ranges = OpenRanges(Content(), HostsOf({&server}));
  std::string seen;
  const absl::Status status = ranges->Read(0, 1'000'000,
                                           [&](ByteSpan bytes) {
                                             seen += AsText(bytes);
                                             return ResourceExhausted("that will do");
                                           },
                                           {std::chrono::steady_clock::now() + seconds(20)});
  EXPECT_EQ(status, ResourceExhausted("that will do"));
  EXPECT_EQ(seen, Content().substr(0, 100));
}

TEST_F(BlobRangesTest, ManyThreadsReadTogether) {
  TestServer server(Serve);
  const auto ranges = OpenRanges(Content(), HostsOf({&server}));
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 20; ++i) ExpectTruth(*ranges, (t * 20 + i) * 10'007, 9'000);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(server.connections(), 8u);
}

TEST_F(BlobRangesTest, MirrorsComeFirstAndAreToldWhoseBlobItIs) {
  TestServer mirror(Serve), registry(Serve);
  const auto ranges = OpenRanges(Content(), HostsOf({&mirror, &registry}));
  ExpectTruth(*ranges);
  EXPECT_THAT(mirror.requests().at(0).target,
              HasSubstr(fmt::format("?ns=127.0.0.1%3a{}", registry.port())));
  EXPECT_TRUE(registry.requests().empty());
}

TEST_F(BlobRangesTest, WhatFailsIsPassedOverAndWhatWorkedIsRemembered) {
  for (const int status : {400, 401, 403, 404, 416, 429, 500, 503}) {
    TestServer mirror([&](const Request&) { return TestServer::Reply(status); });
    TestServer registry(Serve);
    const auto ranges = OpenRanges(Content(), HostsOf({&mirror, &registry}));
    for (int i = 0; i < 3; ++i) ExpectTruth(*ranges);
    EXPECT_EQ(mirror.requests().size(), 1u) << status;
    EXPECT_EQ(registry.requests().size(), 3u) << status;
    EXPECT_THAT(registry.requests().at(0).target, Not(HasSubstr("ns=")));
  }
}

TEST_F(BlobRangesTest, TheMirrorIsAskedAgainAfterAWhile) {
  std::atomic<bool> broken = true;
  TestServer mirror([&](const Request& r) { return broken ? TestServer::Reply(404) : Serve(r); });
  TestServer registry(Serve);
  const auto ranges = OpenRanges(Content(), HostsOf({&mirror, &registry}), NoCredentials,
                                 {.keep_host = milliseconds(1)});
  ExpectTruth(*ranges);
  broken = false;
  std::this_thread::sleep_for(milliseconds(5));
  ExpectTruth(*ranges);
  EXPECT_EQ(mirror.requests().size(), 2u);
  EXPECT_EQ(registry.requests().size(), 1u);
}

TEST_F(BlobRangesTest, AMirrorThatNobodyServesIsPassedOver) {
  TestServer registry(Serve);
  std::vector<Host> hosts = HostsOf({&registry, &registry});
  hosts[0].name = "127.0.0.1:1";
  hosts[0].url = "http://127.0.0.1:1/v2";
  ExpectTruth(*OpenRanges(Content(), hosts));
}

TEST_F(BlobRangesTest, HeadersOfTheConfigurationGoToTheirHostOnly) {
  TestServer storage(Serve);
  TestServer registry([&](const Request&) {
    return TestServer::Reply(307, "", "Location: " + storage.origin() + "/b?sig=x\r\n");
  });
  std::vector<Host> hosts = HostsOf({&registry});
  hosts[0].headers.Add("X-Key", "geheim");
  ExpectTruth(*OpenRanges(Content(), hosts));
  EXPECT_EQ(registry.requests().at(0).headers.at("x-key"), "geheim");
  EXPECT_FALSE(storage.requests().at(0).headers.contains("x-key"));
  EXPECT_TRUE(storage.requests().at(0).headers.contains("range"));
}

TEST_F(BlobRangesTest, ABrokenOrStalledTransferGoesOnWhereItStopped) {
  for (const auto then : {Answer::kClose, Answer::kStall}) {
    std::atomic<int> calls = 0;
    TestServer server([&](const Request& request) {
      Answer answer = Serve(request);
      if (++calls > 3) return answer;
      answer.bytes.resize(answer.bytes.find("\r\n\r\n") + 4 + 5000);
      answer.then = then;
      return answer;
    });
    const auto ranges = OpenRanges(Content(), HostsOf({&server}), NoCredentials, {}, kShortStall);
    ExpectTruth(*ranges, 100, 20'000);
    const auto requests = server.requests();
    ASSERT_EQ(calls, 4);
    EXPECT_EQ(requests.back().headers.at("range"), "bytes=15100-20099");
  }
}

TEST_F(BlobRangesTest, ATrickleIsAStall) {
  std::atomic<int> calls = 0;
  TestServer mirror([&](const Request& request) {
    ++calls;
    Answer answer = Serve(request);
    answer.bytes.resize(answer.bytes.find("\r\n\r\n") + 4 + 10);
    answer.then = Answer::kStall;
    return answer;
  });
  TestServer registry(Serve);
  ExpectTruth(*OpenRanges(Content(), HostsOf({&mirror, &registry}), NoCredentials, {}, kShortStall),
              0, 50'000);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(registry.requests().at(0).headers.at("range"), "bytes=10-49999");
}

TEST_F(BlobRangesTest, TimeInTheSinkIsNoStall) {
  TestServer server(Serve);
  const auto ranges = OpenRanges(Content(), HostsOf({&server}), NoCredentials, {}, kShortStall);
  const absl::Status status = ranges->Read(0, 400,
                                           [](ByteSpan) {
                                             std::this_thread::sleep_for(milliseconds(2500));
                                             return absl::OkStatus();
                                           },
                                           {std::chrono::steady_clock::now() + seconds(20)});
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(BlobRangesTest, ABusyRegistryIsAskedAgainUntilTheDeadline) {
  std::atomic<int> calls = 0;
  TestServer server([&](const Request& request) {
    return ++calls < 4 ? TestServer::Reply(calls == 1 ? 429 : 503) : Serve(request);
  });
  ExpectTruth(*OpenRanges(Content(), HostsOf({&server})));

  TestServer never([](const Request&) { return TestServer::Reply(503); });
  const auto start = std::chrono::steady_clock::now();
  const auto ranges = OpenRanges(Content(), HostsOf({&never}));
  const ReadResult result = ReadRange(*ranges, 0, 10, milliseconds(3000));
  // Of the last answer, or of an attempt that the deadline cut off.
  EXPECT_TRUE(absl::IsUnavailable(result.status) || absl::IsDeadlineExceeded(result.status))
      << result.status;
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(10));
  EXPECT_GE(never.requests().size(), 2u);
}

TEST_F(BlobRangesTest, RoundsCanBeCounted) {
  TestServer mirror([](const Request&) { return TestServer::Reply(503); });
  TestServer registry([](const Request&) { return TestServer::Reply(503); });
  const auto ranges =
      OpenRanges(Content(), HostsOf({&mirror, &registry}), NoCredentials, {.max_rounds = 2});
  EXPECT_EQ(ReadRange(*ranges, 0, 1).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(mirror.requests().size(), 2u);
  EXPECT_EQ(registry.requests().size(), 2u);
}

TEST_F(BlobRangesTest, RetryAfterIsObeyedAndOthersAreAskedMeanwhile) {
  std::atomic<int> calls = 0;
  TestServer server([&](const Request& request) {
    return ++calls < 2 ? TestServer::Reply(429, "", "Retry-After: 1\r\n") : Serve(request);
  });
  const auto start = std::chrono::steady_clock::now();
  ExpectTruth(*OpenRanges(Content(), HostsOf({&server})));
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(900));

  TestServer busy([](const Request&) { return TestServer::Reply(429, "", "Retry-After: 9\r\n"); });
  TestServer registry(Serve);
  const auto ranges = OpenRanges(Content(), HostsOf({&busy, &registry}), NoCredentials,
                                 {.keep_host = milliseconds(0)});
  for (int i = 0; i < 3; ++i) ExpectTruth(*ranges);
  EXPECT_EQ(busy.requests().size(), 1u);
}

TEST_F(BlobRangesTest, AWaitThatIsTooLongIsNotWaited) {
  TestServer busy([](const Request&) { return TestServer::Reply(429, "", "Retry-After: 50\r\n"); });
  const auto start = std::chrono::steady_clock::now();
  const auto ranges = OpenRanges(Content(), HostsOf({&busy}));
  EXPECT_EQ(ReadRange(*ranges, 0, 1, seconds(20)).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(10));
}

TEST_F(BlobRangesTest, TheDeadlineEndsATransfer) {
  TestServer server([](const Request&) { return Answer{"", Answer::kStall}; });
  const auto ranges = OpenRanges(Content(), HostsOf({&server}));
  const ReadResult result = ReadRange(*ranges, 0, 1, milliseconds(3000));
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDeadlineExceeded) << result.status;
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(BlobRangesTest, StoppingEndsTransfersAndWaits) {
  TestServer stalling([](const Request&) { return Answer{"", Answer::kStall}; });
  TestServer busy([](const Request&) { return TestServer::Reply(503, "", "Retry-After: 9\r\n"); });
  for (const TestServer* server : {&stalling, &busy}) {
    http::Options patient;
    const auto ranges =
        BlobRanges::Open({"127.0.0.1", "acme/tiny", oci::Digest(), 10},
                         ConnectHosts(HostsOf({server}), patient).value(), NoCredentials, {})
            .value();
    const auto start = std::chrono::steady_clock::now();
    const ReadResult result = ReadRange(*ranges, 0, 1, seconds(30), [&] {
      return std::chrono::steady_clock::now() - start > milliseconds(300);
    });
    EXPECT_EQ(result.status.code(), absl::StatusCode::kCancelled) << result.status;
    EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(5));
  }
}

TEST_F(BlobRangesTest, HostsWithoutPullAreLeftOut) {
  TestServer mirror(Serve), registry(Serve);
  std::vector<Host> hosts = HostsOf({&mirror, &registry});
  hosts[0].pull = false;
  ExpectTruth(*OpenRanges(Content(), hosts));
  EXPECT_TRUE(mirror.requests().empty());
  EXPECT_EQ(BlobRanges::Open({}, {}, NoCredentials, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kapsule::registry
