#include "snapshotter/http_listener.h"

#include <absl/time/clock.h>
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/unix_socket.h"

namespace kapsule::snapshotter {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

constexpr size_t kBig = 16 << 20;  // more than sockets buffer

HttpReply Echo(const std::string& path) {
  if (path == "/big") return {200, std::string(kBig, 'x')};
  return {path == "/sick" ? 503 : 200, "you asked for " + path + "\n"};
}

std::string Exchange(const UniqueFd& socket, const std::string& request) {
  EXPECT_TRUE(SetTimeout(socket.get(), 10'000).ok());
  EXPECT_EQ(send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[512];
  for (ssize_t got; (got = recv(socket.get(), buffer, sizeof(buffer), 0)) > 0;)
    answer.append(buffer, static_cast<size_t>(got));
  return answer;
}

UniqueFd ConnectTcp(uint16_t port) {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return socket;
}

std::unique_ptr<HttpListener> Listen(const std::string& address) {
  const auto parsed = ParseListenAddress(address, false);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  auto listener = HttpListener::Start(*parsed, Echo);
  EXPECT_TRUE(listener.ok()) << listener.status();
  return *std::move(listener);
}

TEST(HttpListenerTest, OnlyThisMachineConnectsUnlessOthersAreAllowedTo) {
  for (const char* local : {"127.0.0.1:9465", "127.8.8.8:1", "[::1]:9465", "/run/x.sock"})
    EXPECT_TRUE(ParseListenAddress(local, false).ok()) << local;
  for (const char* remote : {"0.0.0.0:9465", "10.0.0.1:9465", "[::]:9465", "[fe80::1]:9465"}) {
    EXPECT_TRUE(absl::IsPermissionDenied(ParseListenAddress(remote, false).status())) << remote;
    EXPECT_TRUE(ParseListenAddress(remote, true).ok()) << remote;
  }
  for (const char* wrong : {"", ":9465", "127.0.0.1", "127.0.0.1:", "localhost:9465", "::1:9465",
                            "[]:1", "127.0.0.1:http", "x/y.sock", "127.0.0.1:99999"})
    EXPECT_TRUE(absl::IsInvalidArgument(ParseListenAddress(wrong, true).status())) << wrong;
  EXPECT_FALSE(ParseListenAddress("/" + std::string(107, 'x'), false).ok());
}

TEST(HttpListenerTest, AnswersGetOverTcpAndOverAUnixSocket) {
  const auto tcp = Listen("127.0.0.1:0");
  const std::string get = "GET /metrics?x=1 HTTP/1.1\r\nHost: h\r\n\r\n";
  const std::string answer = Exchange(ConnectTcp(tcp->port()), get);
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nyou asked for /metrics\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Length: 23\r\n"));
  EXPECT_THAT(Exchange(ConnectTcp(tcp->port()), "GET /sick HTTP/1.0\r\n\r\n"),
              StartsWith("HTTP/1.1 503 Service Unavailable\r\n"));

  std::string dir = "/tmp/kapsule-http-XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  {
    const auto local = Listen(dir + "/made/m.sock");
    struct stat st;
    ASSERT_EQ(stat((dir + "/made/m.sock").c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 0777, 0600u);
    const auto socket = ConnectUnix(dir + "/made/m.sock", SOCK_STREAM);
    ASSERT_TRUE(socket.ok()) << socket.status();
    EXPECT_THAT(Exchange(*socket, get), HasSubstr("you asked for /metrics"));
  }
  EXPECT_TRUE(absl::IsNotFound(ConnectUnix(dir + "/made/m.sock", SOCK_STREAM).status()));
  EXPECT_TRUE(RemoveTree(dir).ok());
}

TEST(HttpListenerTest, WhatIsNoRequestIsRefusedAndKeepsOthersNotLong) {
  const auto listener = Listen("127.0.0.1:0");
  const UniqueFd silent = ConnectTcp(listener->port()), half = ConnectTcp(listener->port());
  ASSERT_EQ(send(half.get(), "GET /", 5, 0), 5);
  EXPECT_THAT(Exchange(ConnectTcp(listener->port()), "GET / HTTP/1.1\r\n\r\n"), HasSubstr("200"));
  EXPECT_THAT(Exchange(ConnectTcp(listener->port()), "POST / HTTP/1.1\r\n\r\n"), HasSubstr("405"));
  EXPECT_THAT(Exchange(ConnectTcp(listener->port()), "hello\r\n\r\n"), HasSubstr("400"));
  EXPECT_THAT(Exchange(ConnectTcp(listener->port()), std::string(4096, 'x')), HasSubstr("400"));
}

constexpr char kGet[] = "GET / HTTP/1.1\r\n\r\n";

// Whether somebody is answered long before those who are slow are cut off.
bool AnswersAtOnce(const HttpListener& listener) {
  const absl::Time start = absl::Now();
  const std::string answer = Exchange(ConnectTcp(listener.port()), kGet);
  return answer.starts_with("HTTP/1.1 200") && absl::Now() - start < absl::Milliseconds(1500);
}

TEST(HttpListenerTest, ClientsThatSayNothingKeepNobodyWaiting) {
  bool at_once = false;
  for (int attempt = 0; attempt < 5 && !at_once; ++attempt) {  // the machine may be slow
    const auto listener = Listen("127.0.0.1:0");
    std::vector<UniqueFd> silent;
    for (int i = 0; i < 8; ++i) silent.push_back(ConnectTcp(listener->port()));
    at_once = AnswersAtOnce(*listener);
  }
  EXPECT_TRUE(at_once);
}

TEST(HttpListenerTest, ClientsThatDoNotTakeTheirAnswerKeepNobodyWaitingAndAreCutOff) {
  std::unique_ptr<HttpListener> listener;
  std::vector<UniqueFd> slow;
  bool at_once = false;
  for (int attempt = 0; attempt < 5 && !at_once; ++attempt) {  // the machine may be slow
    slow.clear();
    listener = Listen("127.0.0.1:0");
    for (int i = 0; i < 3; ++i) {
      slow.push_back(ConnectTcp(listener->port()));
      ASSERT_GT(send(slow.back().get(), "GET /big HTTP/1.1\r\n\r\n", 21, MSG_NOSIGNAL), 0);
    }
    absl::SleepFor(absl::Milliseconds(500));
    at_once = AnswersAtOnce(*listener);
  }
  EXPECT_TRUE(at_once);
  absl::SleepFor(absl::Seconds(4));
  for (const UniqueFd& socket : slow) EXPECT_LT(Exchange(socket, "").size(), kBig);
}

TEST(HttpListenerTest, OfTooManyClientsTheOldestIsDropped) {
  std::string oldest, newest;
  absl::Duration took = absl::InfiniteDuration();
  // Until it was long before those who are slow are cut off: the machine may be slow.
  for (int attempt = 0; attempt < 5 && took >= absl::Milliseconds(1500); ++attempt) {
    const auto listener = Listen("127.0.0.1:0");
    const absl::Time start = absl::Now();
    std::vector<UniqueFd> silent;
    for (int i = 0; i < 64; ++i) silent.push_back(ConnectTcp(listener->port()));
    EXPECT_THAT(Exchange(ConnectTcp(listener->port()), kGet), StartsWith("HTTP/1.1 200"));
    oldest = Exchange(silent.front(), "");
    newest = Exchange(silent.back(), kGet);
    took = absl::Now() - start;
  }
  EXPECT_LT(took, absl::Milliseconds(1500));
  EXPECT_EQ(oldest, "");
  EXPECT_THAT(newest, StartsWith("HTTP/1.1 200"));
}

TEST(HttpListenerTest, ARequestInPiecesIsARequest) {
  const auto listener = Listen("127.0.0.1:0");
  const UniqueFd socket = ConnectTcp(listener->port());
  for (const char* piece : {"GET /a", "b HTTP/1.1\r\n", "Host: h\r\n\r"}) {
    ASSERT_GT(send(socket.get(), piece, strlen(piece), MSG_NOSIGNAL), 0);
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_THAT(Exchange(socket, "\n"), EndsWith("you asked for /ab\n"));
}

TEST(HttpListenerTest, TwoDoNotListenOnOnePort) {
  const auto listener = Listen("127.0.0.1:0");
  const auto again =
      ParseListenAddress("127.0.0.1:" + std::to_string(listener->port()), false).value();
  EXPECT_TRUE(absl::IsAlreadyExists(HttpListener::Start(again, Echo).status()));
}

TEST(HttpListenerTest, ThePathOfARequestIsFoundOrRefused) {
  EXPECT_EQ(RequestedPath("GET /a/b HTTP/1.1\r\n").value(), "/a/b");
  EXPECT_EQ(RequestedPath("GET /? HTTP/1.0\r\nX: y\r\n\r\n").value(), "/");
  for (const char* wrong : {"", "\r\n", "GET", "GET \r\n", "GET / \r\n", "GET / HTTP/1.1",
                            "GET / HTTP/2\r\n", "GET x HTTP/1.1\r\n", "GET  HTTP/1.1\r\n"})
    EXPECT_TRUE(absl::IsInvalidArgument(RequestedPath(wrong).status())) << wrong;
  EXPECT_TRUE(absl::IsUnimplemented(RequestedPath("HEAD / HTTP/1.1\r\n").status()));
  EXPECT_FALSE(RequestedPath("GET /" + std::string(256, 'x') + " HTTP/1.1\r\n").ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
