#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "core/http/test_server.h"
#include "core/registry/repository.h"

namespace kapsule::registry {
namespace {

using http::TestServer;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kManifest[] = R"({"schemaVersion":2})";

Options Plain() {
  Options options;
  options.insecure = true;
  options.username = "publisher";
  options.password = "geheim";
  options.retry.first_delay = std::chrono::milliseconds(10);
  return options;
}

oci::Reference Ref(const TestServer& server) {
  return oci::Reference::Parse(fmt::format("127.0.0.1:{}/acme/tiny:enc", server.port())).value();
}

// "publisher:geheim"
constexpr char kBasic[] = "Basic cHVibGlzaGVyOmdlaGVpbQ==";

// A registry and its token service in one.
class BearerTest : public ::testing::Test {
 protected:
  BearerTest() : server_([this](const TestServer::Request& r) { return Serve(r); }) {}

  TestServer::Answer Serve(const TestServer::Request& request) {
    if (request.target.starts_with("/token")) return Token(request);
    const auto header = request.headers.find("authorization");
    if (header != request.headers.end() && header->second == "Bearer t" + std::to_string(valid_))
      return TestServer::Reply(200, kManifest);
    return TestServer::Reply(401, R"({"errors":[{"code":"UNAUTHORIZED","message":"no"}]})",
                             fmt::format("WWW-Authenticate: Bearer realm=\"{}/token\","
                                         "service=\"reg.test\",scope=\"ignored\"\r\n",
                                         server_.origin()));
  }

  TestServer::Answer Token(const TestServer::Request& request) {
    ++tokens_;
    const auto header = request.headers.find("authorization");
    const bool known = request.method == "POST"
                           ? request.body.find("refresh_token=refresh") != std::string::npos
                           : header != request.headers.end() && header->second == kBasic;
    if (!known) return TestServer::Reply(401, R"({"details":"incorrect username or password"})");
    return TestServer::Reply(
        200, fmt::format(R"({{"token":"t{}","expires_in":{}}})", valid_.load(), life_.load()));
  }

  std::atomic<int> tokens_ = 0, valid_ = 1, life_ = 300;
  TestServer server_;
};

TEST_F(BearerTest, ATokenIsFetchedOnceAndKept) {
  Repository repository(Ref(server_), Plain());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(repository.GetManifest(std::nullopt)->bytes, kManifest);
  EXPECT_EQ(tokens_, 1);
  EXPECT_EQ(server_.requests().size(), 5u);
  EXPECT_EQ(server_.requests().at(1).target,
            "/token?service=reg.test&scope=repository%3aacme%2ftiny%3apull");
}

TEST_F(BearerTest, APushAsksForItsOwnScope) {
  Repository repository(Ref(server_), Plain());
  ASSERT_TRUE(repository.GetManifest(std::nullopt).ok());
  ASSERT_TRUE(repository.HasBlob(oci::Digest(), 0).ok());
  EXPECT_EQ(tokens_, 2);
  EXPECT_THAT(server_.requests().at(3).target, HasSubstr("pull%2cpush"));
}

TEST_F(BearerTest, ARevokedTokenIsRenewedOnce) {
  Repository repository(Ref(server_), Plain());
  ASSERT_TRUE(repository.GetManifest(std::nullopt).ok());
  valid_ = 2;
  ASSERT_TRUE(repository.GetManifest(std::nullopt).ok());
  EXPECT_EQ(tokens_, 2);
}

TEST_F(BearerTest, AnExpiringTokenIsRenewedBeforeUse) {
  life_ = 5;
  Repository repository(Ref(server_), Plain());
  ASSERT_TRUE(repository.GetManifest(std::nullopt).ok());
  ASSERT_TRUE(repository.GetManifest(std::nullopt).ok());
  EXPECT_EQ(tokens_, 2);
  EXPECT_EQ(server_.requests().size(), 5u);  // no second 401
}

TEST_F(BearerTest, WrongPasswordsAreSaidAndNotShown) {
  Options options = Plain();
  options.password = "secret-word";
  Repository repository(Ref(server_), options);
  const auto manifest = repository.GetManifest(std::nullopt);
  EXPECT_EQ(manifest.status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(Message(manifest.status()),
              HasSubstr("token service answered 401: incorrect username or password: log in with"));
  EXPECT_THAT(Message(manifest.status()), Not(HasSubstr("secret-word")));
}

TEST_F(BearerTest, AnIdentityTokenIsExchanged) {
  const http::Client client({});
  Authenticator authenticator(
      client, {},
      [] {
        return TheseCredentials({{"", "", "refresh"}});
      },
      true);
  const http::Headers challenge{
      {"WWW-Authenticate", fmt::format("Bearer realm=\"{}/token\"", server_.origin())}};
  Authenticator::Tried tried;
  EXPECT_EQ(authenticator.Answer(challenge, "repository:a:pull", "", {}, tried).value(),
            "Bearer t1");
  EXPECT_EQ(server_.requests().at(0).headers.at("content-type"),
            "application/x-www-form-urlencoded");
  EXPECT_THAT(server_.requests().at(0).body, HasSubstr("grant_type=refresh_token"));
}

TEST_F(BearerTest, CredentialsAreNotSentToAServiceWithoutHttps) {
  const http::Client client({});
  Authenticator authenticator(
      client, {},
      [] {
        return TheseCredentials({{"publisher", "geheim", ""}});
      },
      false);
  const http::Headers challenge{
      {"WWW-Authenticate", fmt::format("Bearer realm=\"{}/token\"", server_.origin())}};
  Authenticator::Tried tried;
  EXPECT_EQ(authenticator.Answer(challenge, "s", "", {}, tried).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(server_.requests().empty());
}

TEST(TokenServiceTest, EveryBrokenAnswerIsAnError) {
  for (const std::string body :
       {"", "{", "[]", "{}", R"({"token":7})", R"({"token":"a\r\nX: y"})"}) {
    std::atomic<int> port = 0;
    TestServer server([&](const TestServer::Request& r) {
      if (r.target.starts_with("/token")) return TestServer::Reply(200, body);
      return TestServer::Reply(
          401, "",
          fmt::format("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{}/token\"\r\n",
                      port.load()));
    });
    port = server.port();
    EXPECT_FALSE(Repository(Ref(server), Plain()).GetManifest(std::nullopt).ok()) << body;
  }
}

TEST(BasicTest, WhatWorkedIsSentAtOnceTheNextTime) {
  TestServer server([](const TestServer::Request& r) {
    const auto header = r.headers.find("authorization");
    return header != r.headers.end() && header->second == kBasic
               ? TestServer::Reply(200, kManifest)
               : TestServer::Reply(401, "", "WWW-Authenticate: Basic realm=\"x\"\r\n");
  });
  Repository repository(Ref(server), Plain());
  ASSERT_TRUE(repository.GetManifest(std::nullopt).ok());
  ASSERT_TRUE(repository.GetManifest(std::nullopt).ok());
  EXPECT_EQ(server.requests().size(), 3u);
}

TEST(BasicTest, ARefusedPasswordIsTriedOnce) {
  TestServer server([](const auto&) {
    return TestServer::Reply(401, R"({"errors":[{"code":"UNAUTHORIZED","message":"nope"}]})",
                             "WWW-Authenticate: Basic realm=\"x\"\r\n");
  });
  const auto manifest = Repository(Ref(server), Plain()).GetManifest(std::nullopt);
  EXPECT_EQ(manifest.status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(Message(manifest.status()),
            fmt::format("pull 127.0.0.1:{}/acme/tiny:enc: registry answered 401: UNAUTHORIZED: "
                        "nope: log in with --username/--password or docker login",
                        server.port()));
  EXPECT_EQ(server.requests().size(), 2u);
}

TEST(BasicTest, CredentialsGoToNoOtherHost) {
  TestServer other([](const auto&) { return TestServer::Reply(202, "", "Location: /x\r\n"); });
  TestServer server([&](const TestServer::Request& r) {
    if (!r.headers.contains("authorization"))
      return TestServer::Reply(401, "", "WWW-Authenticate: Basic realm=\"x\"\r\n");
    return TestServer::Reply(202, "", "Location: " + other.origin() + "/upload\r\n");
  });
  Repository repository(Ref(server), Plain());
  {
    auto upload = repository.StartBlob(std::nullopt).value();
    ASSERT_TRUE(upload->Write(AsBytes("blob")).ok());
    (void)upload->Commit(oci::Digest::Of(AsBytes("blob")), 4);
  }
  ASSERT_GE(other.requests().size(), 2u);
  for (const auto& request : other.requests())
    EXPECT_FALSE(request.headers.contains("authorization")) << request.method;
}

}  // namespace
}  // namespace kapsule::registry
