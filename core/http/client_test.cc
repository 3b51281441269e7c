#include "core/http/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "core/http/test_requests.h"
#include "core/http/test_server.h"

namespace kapsule::http {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Answer = TestServer::Answer;
using std::chrono::milliseconds;

// 1 MiB of zeros, as gzip packs them.
std::string Zeros() {
  std::string packed;
  FILE* pipe = popen("head -c 1048576 /dev/zero | gzip -9n", "r");
  char piece[4096];
  for (size_t n; pipe != nullptr && (n = fread(piece, 1, sizeof piece, pipe)) > 0;)
    packed.append(piece, n);
  if (pipe != nullptr) pclose(pipe);
  return packed;
}

absl::StatusCode CodeFor(const Answer& answer, size_t limit = 1000) {
  TestServer server([&](const auto&) { return answer; });
  // A server that is slow to begin with its answer is no stall.
  const bool stalls = answer.then == Answer::kStall || answer.then == Answer::kTrickle;
  const Client client(stalls ? Hasty() : Options());
  return client.Send(Get(server.origin()), limit).status().code();
}

TEST(ClientTest, SendsMethodHeadersAndBody) {
  TestServer server([](const auto&) { return TestServer::Reply(201, "made", "X-Id: 7\r\n"); });
  Request request = Get(server.origin() + "/things?a=b");
  request.method = "POST";
  request.headers = {{"X-Name", "value"}, {"X-Empty", ""}};
  request.body = "content";
  const Response response = Client({}).Send(request, 100).value();
  EXPECT_EQ(response.status, 201);
  EXPECT_EQ(response.body, "made");
  EXPECT_EQ(response.headers.Find("x-id"), "7");
  const TestServer::Request seen = server.requests().at(0);
  EXPECT_EQ(seen.method, "POST");
  EXPECT_EQ(seen.target, "/things?a=b");
  EXPECT_EQ(seen.headers.at("x-name"), "value");
  EXPECT_TRUE(seen.headers.contains("x-empty") || seen.headers.contains("x-empty:"));
  EXPECT_EQ(seen.headers.at("content-length"), "7");
  EXPECT_FALSE(seen.headers.contains("expect"));
  EXPECT_EQ(seen.body, "content");
}

TEST(ClientTest, APostWithoutBodySaysSo) {
  TestServer server([](const auto&) { return TestServer::Reply(202); });
  Request request = Get(server.origin());
  request.method = "POST";
  EXPECT_EQ(Client({}).Send(request, 100)->status, 202);
  EXPECT_EQ(server.requests().at(0).headers.at("content-length"), "0");
}

TEST(ClientTest, HeadHasNoBody) {
  TestServer server(
      [](const auto&) { return Answer{"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n"}; });
  Request request = Get(server.origin());
  request.method = "HEAD";
  const Response response = Client({}).Send(request, 0).value();
  EXPECT_EQ(response.headers.Find("content-length"), "12345");
  EXPECT_EQ(response.body, "");
}

TEST(ClientTest, KeepsTheConnection) {
  TestServer server([](const auto&) { return TestServer::Reply(200, "x"); });
  const Client client({});
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(client.Send(Get(server.origin()), 10).ok());
  EXPECT_EQ(server.connections(), 1u);
}

TEST(ClientTest, ManyThreadsShareOneClient) {
  TestServer server([](const auto& r) { return TestServer::Reply(200, r.target); });
  const Client client({});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const std::string target = fmt::format("/{}/{}", t, i);
        EXPECT_EQ(client.Send(Get(server.origin() + target), 100)->body, target);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(server.connections(), 4u);
}

TEST(ClientTest, BodiesEndAtTheLimit) {
  TestServer server([](const auto&) { return TestServer::Reply(200, std::string(1000, 'x')); });
  const Client client({});
  EXPECT_EQ(client.Send(Get(server.origin()), 1000)->body.size(), 1000u);
  EXPECT_EQ(client.Send(Get(server.origin()), 999).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(ClientTest, AnErrorsBodyIsCutAndItsStatusKept) {
  TestServer server([](const auto&) { return TestServer::Reply(500, std::string(100000, 'x')); });
  const Response response = Client({}).Send(Get(server.origin()), 100).value();
  EXPECT_EQ(response.status, 500);
  EXPECT_EQ(response.body.size(), 100u);
}

TEST(ClientTest, ABodyShorterThanItsLengthIsAnError) {
  EXPECT_EQ(CodeFor({"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", Answer::kClose}),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(CodeFor({"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
                     Answer::kClose}),
            absl::StatusCode::kUnavailable);
}

TEST(ClientTest, EndlessHeadersAreCutOff) {
  std::string lines = "HTTP/1.1 200 OK\r\n";
  for (int i = 0; i < 1000; ++i) lines += std::string(200, 'a') + ": b\r\n";
  TestServer many_lines([&](const auto&) { return Answer{lines, Answer::kStall}; });
  const auto response = Client({}).Send(Get(many_lines.origin()), 10);
  EXPECT_EQ(response.status().code(), absl::StatusCode::kResourceExhausted) << response.status();
  TestServer one_line([](const auto&) { return Answer{std::string(1000, 'a'), Answer::kRepeat}; });
  EXPECT_FALSE(Client(Hasty()).Send(Get(one_line.origin()), 10).ok());
}

TEST(ClientTest, EndlessBodiesAreCutOff) {
  TestServer server([](const auto& r) {
    return r.target == "/" ? Answer{"HTTP/1.1 200 OK\r\n\r\nx", Answer::kRepeat}
                           : Answer{"HTTP/1.1 500 No\r\n\r\nx", Answer::kRepeat};
  });
  const Client client({});
  EXPECT_EQ(client.Send(Get(server.origin() + "/"), 100).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(client.Send(Get(server.origin() + "/bad"), 100)->status, 500);
}

TEST(ClientTest, StallsAreCutOffWhereverTheyHappen) {
  for (const std::string bytes :
       {"", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"}) {
    EXPECT_EQ(CodeFor({bytes, Answer::kStall}), absl::StatusCode::kDeadlineExceeded) << bytes;
  }
}

TEST(ClientTest, ATrickleOfHeadersOrBodyIsAStall) {
  for (const std::string bytes : {"HTTP/1.1 200 OK\r\nX-Slow: x", "HTTP/1.1 200 OK\r\n\r\nx"}) {
    EXPECT_EQ(CodeFor({bytes, Answer::kTrickle}, 100'000), absl::StatusCode::kDeadlineExceeded)
        << bytes;
  }
}

TEST(ClientTest, InterimAnswersEnd) {
  EXPECT_EQ(CodeFor({"HTTP/1.1 102 Processing\r\n\r\n", Answer::kRepeat}),
            absl::StatusCode::kResourceExhausted);
}

// One KiB that inflates to one MiB.
TEST(ClientTest, NothingIsInflatedPastTheLimit) {
  const std::string bomb = Zeros();
  ASSERT_LT(bomb.size(), 2000u);
  TestServer server([&](const auto& r) {
    if (r.target == "/transfer")
      return Answer{"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n" + bomb, Answer::kClose};
    return TestServer::Reply(200, bomb, "Content-Encoding: gzip\r\n");
  });
  const Client client({});
  EXPECT_EQ(client.Send(Get(server.origin()), 10'000)->body, bomb);
  EXPECT_FALSE(server.requests().at(0).headers.contains("accept-encoding"));
  const auto transfer = client.Send(Get(server.origin() + "/transfer"), 10'000);
  EXPECT_TRUE(!transfer.ok() || transfer->body.size() <= 10'000);
}

TEST(ClientTest, TheTimeOfAnExchangeCanBeBounded) {
  TestServer server([](const auto&) { return Answer{"HTTP/1.1 200 OK\r\n", Answer::kStall}; });
  Request request = Get(server.origin());
  request.timeout = milliseconds(200);
  EXPECT_EQ(Client({}).Send(request, 10).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(ClientTest, GarbageIsNoAnswer) {
  for (const std::string bytes :
       {"garbage\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 999999 x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}) {
    EXPECT_NE(CodeFor({bytes, Answer::kClose}), absl::StatusCode::kOk) << bytes;
  }
}

TEST(ClientTest, NobodyListeningIsUnavailable) {
  int port;
  {
    port = TestServer([](const auto&) { return Answer{}; }).port();
  }
  const auto response = Client(Hasty()).Send(Get(fmt::format("http://127.0.0.1:{}/a?q", port)), 10);
  EXPECT_EQ(response.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(response.status()),
              HasSubstr(fmt::format("GET http://127.0.0.1:{}/a: ", port)));
}

TEST(ClientTest, OtherSchemesAndBrokenHeadersAreNotSent) {
  EXPECT_EQ(Client({}).Send(Get("file:///etc/passwd"), 10).status().code(),
            absl::StatusCode::kInvalidArgument);
  Request request = Get("http://127.0.0.1:1/");
  request.headers.Add("X", "a\r\nY: b");
  EXPECT_EQ(Client({}).Send(request, 10).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(DownloadTest, StreamsASuccessAndKeepsAnError) {
  TestServer server([](const auto& r) {
    return r.target == "/good" ? TestServer::Reply(200, std::string(5'000'000, 'd'))
                               : TestServer::Reply(404, "no such thing");
  });
  const Client client({});
  size_t received = 0;
  const Sink sink = [&](ByteSpan bytes) {
    received += bytes.size();
    return absl::OkStatus();
  };
  EXPECT_EQ(client.Download(Get(server.origin() + "/good"), sink)->body, "");
  EXPECT_EQ(received, 5'000'000u);
  const Response missing = client.Download(Get(server.origin() + "/bad"), sink).value();
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(missing.body, "no such thing");
  EXPECT_EQ(received, 5'000'000u);
}

TEST(DownloadTest, TheHeadIsSeenBeforeTheBody) {
  TestServer other([](const auto&) { return TestServer::Reply(200, "body", "X-Id: 7\r\n"); });
  TestServer server([&](const auto& r) {
    if (r.target == "/empty") return TestServer::Reply(204);
    if (r.target == "/bad") return TestServer::Reply(404, "no");
    return TestServer::Reply(302, "", "Location: " + other.origin() + "/x\r\n");
  });
  const Client client({});
  std::string seen;
  const Sink sink = [&](ByteSpan bytes) {
    seen += AsText(bytes);
    return absl::OkStatus();
  };
  const HeadCheck check = [&](const Response& head) {
    seen += fmt::format("<{} {}>", head.status, head.headers.Find("X-Id").value_or(""));
    return absl::OkStatus();
  };
  EXPECT_EQ(client.Download(Get(server.origin()), sink, check)->url, other.origin() + "/x");
  EXPECT_EQ(client.Download(Get(server.origin() + "/bad"), sink, check)->status, 404);
  EXPECT_EQ(client.Download(Get(server.origin() + "/empty"), sink, check)->status, 204);
  EXPECT_EQ(seen, "<200 7>body<204 >");
}

TEST(DownloadTest, ARefusedHeadEndsTheTransfer) {
  TestServer server([](const auto&) {
    return Answer{"HTTP/1.1 200 OK\r\n\r\nx", Answer::kRepeat};
  });
  const auto response = Client({}).Download(
      Get(server.origin()), [](ByteSpan) { return Internal("not called"); },
      [](const Response&) { return DataLoss("a lie"); });
  EXPECT_EQ(response.status().code(), absl::StatusCode::kDataLoss) << response.status();
}

TEST(LimitsTest, TheDeadlineCountsOverRedirectsAndTrickles) {
  TestServer loop([](const auto&) {
    std::this_thread::sleep_for(milliseconds(200));
    return TestServer::Reply(302, "", "Location: /\r\n");
  });
  Request request = Get(loop.origin());
  request.deadline = std::chrono::steady_clock::now() + milliseconds(500);
  EXPECT_EQ(Client({}).Send(request, 10).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(loop.requests().size(), 6u);

  TestServer endless([](const auto&) {
    return Answer{"HTTP/1.1 200 OK\r\n\r\nx", Answer::kRepeat};
  });
  request = Get(endless.origin());
  request.deadline = std::chrono::steady_clock::now() + milliseconds(300);
  const auto response = Client({}).Download(request, [](ByteSpan) { return absl::OkStatus(); });
  EXPECT_EQ(response.status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(LimitsTest, StoppedEndsAnExchange) {
  TestServer server([](const auto&) { return Answer{"", Answer::kStall}; });
  Request request = Get(server.origin());
  const auto start = std::chrono::steady_clock::now();
  request.stopped = [&] { return std::chrono::steady_clock::now() - start > milliseconds(200); };
  EXPECT_EQ(Client({}).Send(request, 10).status().code(), absl::StatusCode::kCancelled);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(LimitsTest, ASpeedFloorCutsWhatIsSlow) {
  TestServer server([](const auto&) {
    return Answer{"HTTP/1.1 200 OK\r\n\r\n" + std::string(50'000, 'x'), Answer::kStall};
  });
  Options options = Hasty();
  options.stall_bytes = 100'000;
  const auto response =
      Client(options).Download(Get(server.origin()), [](ByteSpan) { return absl::OkStatus(); });
  EXPECT_EQ(response.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(response.status()), HasSubstr("stalled"));
}

TEST(DownloadTest, TheSinksErrorEndsTheTransfer) {
  TestServer server([](const auto&) {
    return Answer{"HTTP/1.1 200 OK\r\n\r\nx", Answer::kRepeat};
  });
  const auto response = Client({}).Download(
      Get(server.origin()), [](ByteSpan) { return ResourceExhausted("disk full"); });
  EXPECT_EQ(response.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(response.status()), HasSubstr("disk full"));
}

TEST(MessagesTest, HoldNeitherQueryNorHeader) {
  TestServer server([](const auto&) { return Answer{"", Answer::kClose}; });
  Request request = Get(server.origin() + "/a?token=GEHEIM1");
  request.headers.Add("Authorization", "Bearer GEHEIM2");
  const auto response = Client(Hasty()).Send(request, 10);
  ASSERT_FALSE(response.ok());
  EXPECT_THAT(Message(response.status()), Not(HasSubstr("GEHEIM")));
}

TEST(DescriptorsTest, NoneIsLeftOpen) {
  const auto count = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  };
  const auto before = count();
  {
    TestServer server([](const auto&) { return Answer{"HTTP/1.1 200 OK\r\n", Answer::kStall}; });
    EXPECT_FALSE(Client(Hasty()).Send(Get(server.origin()), 10).ok());
  }
  EXPECT_EQ(count(), before);
}

}  // namespace
}  // namespace kapsule::http
