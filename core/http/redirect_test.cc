// Redirects, and what they take along.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/http/client.h"
#include "core/http/test_requests.h"
#include "core/http/test_server.h"

namespace kapsule::http {
namespace {

TEST(RedirectTest, AuthorizationStaysWithItsHost) {
  TestServer other([](const auto&) { return TestServer::Reply(200, "other"); });
  TestServer server([&](const auto& r) {
    if (r.target == "/same") return TestServer::Reply(307, "", "Location: /end\r\n");
    if (r.target == "/other")
      return TestServer::Reply(307, "", "Location: " + other.origin() + "/end?sig=1\r\n");
    return TestServer::Reply(200, "same");
  });
  Request request = Get(server.origin() + "/same");
  request.headers = {{"authorization", "Basic c2VjcmV0"},
                     {"Accept", "a/b"},
                     {"X-Key", "s"},
                     {"Range", "bytes=1-"}};
  const Client client({});
  EXPECT_EQ(client.Send(request, 100)->body, "same");
  EXPECT_EQ(server.requests().at(1).headers.at("authorization"), "Basic c2VjcmV0");
  request.url = server.origin() + "/other";
  const Response response = client.Send(request, 100).value();
  EXPECT_EQ(response.body, "other");
  EXPECT_EQ(response.url, other.origin() + "/end?sig=1");
  EXPECT_FALSE(other.requests().at(0).headers.contains("authorization"));
  EXPECT_FALSE(other.requests().at(0).headers.contains("x-key"));
  EXPECT_EQ(other.requests().at(0).headers.at("accept"), "a/b");
  EXPECT_EQ(other.requests().at(0).headers.at("range"), "bytes=1-");
}

TEST(RedirectTest, ALoopEnds) {
  TestServer server([](const auto&) { return TestServer::Reply(302, "", "Location: /\r\n"); });
  EXPECT_EQ(Client({}).Send(Get(server.origin()), 10).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(server.requests().size(), 6u);
}

TEST(RedirectTest, OnlyHttpIsFollowed) {
  for (const std::string target :
       {"file:///etc/passwd", "FILE:///etc/passwd", "unix:///run/x.sock", "http+unix://%2frun%2fx/",
        "ftp://127.0.0.1/", "gopher://127.0.0.1:1/x", "dict://127.0.0.1:1/x", "data:,x",
        "//user:word@127.0.0.1/", "http://[::1", "", " "}) {
    TestServer server(
        [&](const auto&) { return TestServer::Reply(302, "", "Location: " + target + "\r\n"); });
    const auto response = Client(Hasty()).Send(Get(server.origin() + "/a"), 10);
    EXPECT_TRUE(!response.ok() || response->status == 302) << target;
    EXPECT_LE(server.requests().size(), 6u) << target;
  }
}

TEST(RedirectTest, NoBodyGoesToAnotherHost) {
  TestServer other([](const auto&) { return TestServer::Reply(200, "other"); });
  TestServer server([&](const auto& r) {
    if (r.target == "/end") return TestServer::Reply(200, "same");
    return TestServer::Reply(
        307, "", "Location: " + (r.target == "/same" ? "" : other.origin()) + "/end\r\n");
  });
  Request request = Get(server.origin() + "/same");
  request.method = "POST";
  request.body = "refresh_token=GEHEIM";
  EXPECT_EQ(Client({}).Send(request, 100)->body, "same");
  request.url = server.origin() + "/other";
  const auto response = Client({}).Send(request, 100);
  EXPECT_EQ(response.status().code(), absl::StatusCode::kInvalidArgument) << response.status();
  EXPECT_TRUE(other.requests().empty());
}

TEST(RedirectTest, APostIsNotTurnedIntoAGet) {
  TestServer server([](const auto&) { return TestServer::Reply(302, "", "Location: /x\r\n"); });
  Request request = Get(server.origin());
  request.method = "POST";
  EXPECT_EQ(Client({}).Send(request, 10)->status, 302);
}

}  // namespace
}  // namespace kapsule::http
