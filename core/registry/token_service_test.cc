// BlobRanges whose registry names a token service that lies, or is elsewhere.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/registry/blob_ranges.h"
#include "core/registry/test_blobs.h"

namespace kapsule::registry {
namespace {

using http::TestServer;
using Answer = TestServer::Answer;
using Request = TestServer::Request;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string& Content() {
  static const auto* const content = new std::string(TestBytes(1000));
  return *content;
}

// A registry that believes a token of one service, which answers as a test says.
class TokenServiceTest : public ::testing::Test {
 protected:
  void SetRealm(const std::string& realm) {
    absl::MutexLock lock(&mu_);
    realm_ = realm;
  }
  void SetAnswer(const Answer& answer) {
    absl::MutexLock lock(&mu_);
    answer_ = answer;
  }

  Answer Serve(const Request& request) {
    absl::MutexLock lock(&mu_);
    if (request.headers.contains("authorization") &&
        request.headers.at("authorization") == "Bearer good")
      return AnswerRange(request, Content());
    return TestServer::Reply(401, "",
                             "WWW-Authenticate: Bearer realm=\"" + realm_ + "\",service=\"s\"\r\n");
  }

  ReadResult Read(const Credentials& credentials = {"user", "geheim", ""}) {
    const auto start = std::chrono::steady_clock::now();
    const auto ranges = OpenRanges(
        Content(), HostsOf({&registry_}),
        [&](const std::string&) { return TheseCredentials({credentials}); }, {.max_rounds = 1});
    ReadResult result = ReadRange(*ranges, 7, 3, time_);
    EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(10));
    EXPECT_THAT(Message(result.status), Not(HasSubstr("geheim")));
    return result;
  }

  seconds time_{20};  // for a read
  absl::Mutex mu_;
  Answer answer_ ABSL_GUARDED_BY(mu_) = TestServer::Reply(200, R"({"token":"good"})");
  TestServer service_{[this](const Request&) {
    absl::MutexLock lock(&mu_);
    return answer_;
  }};
  std::string realm_ ABSL_GUARDED_BY(mu_) = service_.origin() + "/token";
  TestServer registry_{[this](const Request& r) { return Serve(r); }};
};

TEST_F(TokenServiceTest, ItsTokenOpensTheRegistry) {
  EXPECT_EQ(Read().bytes, Content().substr(7, 3));
  EXPECT_TRUE(service_.requests().at(0).headers.contains("authorization"));
}

TEST_F(TokenServiceTest, ARealmThatIsNoHttpUrlIsRefused) {
  for (const std::string realm :
       {"file:///etc/passwd", "unix:///run/x.sock", "http+unix://%2frun%2fx/", "ftp://127.0.0.1/",
        "gopher://127.0.0.1:1/x", "/token", "", "http://", "http://user:word@127.0.0.1/",
        "http://127.0.0.1:99999/", "http://a b/"}) {
    SetRealm(realm);
    const ReadResult result = Read();
    EXPECT_EQ(result.status.code(), absl::StatusCode::kInvalidArgument)
        << realm << ": " << result.status;
  }
}

TEST_F(TokenServiceTest, BodiesThatAreTooLargeOrEndlessOrPackedAreRefused) {
  const std::string head = "HTTP/1.1 200 OK\r\n";
  const Answer answers[] = {
      TestServer::Reply(200, R"({"token":")" + std::string(2 << 20, 'x') + "\"}"),
      {head + "\r\n{", Answer::kRepeat},
      {head + "\r\n" + std::string(1 << 20, '['), Answer::kClose},
      {head + "X: y\r\n", Answer::kRepeat},
      TestServer::Reply(200, "\x1f\x8b\x08 packed", "Content-Encoding: gzip\r\n"),
      TestServer::Reply(200, R"({"token":"a\r\nb"})"),
      TestServer::Reply(200, R"({"token":"","expires_in":-1})"),
      TestServer::Reply(204),
  };
  for (const Answer& answer : answers) {
    SetAnswer(answer);
    EXPECT_FALSE(Read().status.ok()) << answer.bytes.substr(0, 100);
  }
}

TEST_F(TokenServiceTest, ATokenTooLargeForAHeaderIsRefused) {
  SetAnswer(TestServer::Reply(200, R"({"token":")" + std::string(500'000, 'x') + "\"}"));
  EXPECT_THAT(Message(Read().status), HasSubstr("token"));
  for (const Request& request : registry_.requests())
    EXPECT_FALSE(request.headers.contains("authorization"));
}

TEST_F(TokenServiceTest, ATrickleIsBoundByTheDeadline) {
  time_ = seconds(3);
  for (const std::string bytes : {"HTTP/1.1 200 OK\r\nX: y", "HTTP/1.1 200 OK\r\n\r\n "}) {
    SetAnswer({bytes, Answer::kTrickle});
    EXPECT_EQ(Read().status.code(), absl::StatusCode::kDeadlineExceeded);
  }
}

TEST_F(TokenServiceTest, ARedirectTakesNoCredentialsAlong) {
  TestServer other([](const Request&) { return TestServer::Reply(200, R"({"token":"good"})"); });
  SetAnswer(TestServer::Reply(307, "", "Location: " + other.origin() + "/token\r\n"));
  EXPECT_TRUE(Read().status.ok());
  ASSERT_EQ(other.requests().size(), 1u);
  EXPECT_FALSE(other.requests().at(0).headers.contains("authorization"));
  EXPECT_EQ(Read({"", "", "geheim"}).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(other.requests().size(), 1u);
}

TEST_F(TokenServiceTest, LoopsAndRedirectsToFilesEnd) {
  for (const std::string target : {"/token", "file:///etc/passwd", "unix:///run/x"}) {
    SetAnswer(TestServer::Reply(307, "", "Location: " + target + "\r\n"));
    EXPECT_EQ(Read().status.code(), absl::StatusCode::kInvalidArgument) << target;
  }
  EXPECT_LE(service_.requests().size(), 8u);
}

TEST_F(TokenServiceTest, ChallengesThatAreNoneEnd) {
  TestServer registry([](const Request&) {
    std::string headers;
    for (int i = 0; i < 1000; ++i) headers += "WWW-Authenticate: Digest realm=\"x\", Bearer\r\n";
    return TestServer::Reply(401, "", headers);
  });
  const auto ranges = OpenRanges(Content(), HostsOf({&registry}), NoCredentials);
  EXPECT_FALSE(ReadRange(*ranges, 7, 3, seconds(3)).status.ok());
  EXPECT_LE(registry.requests().size(), 2u);
}

}  // namespace
}  // namespace kapsule::registry
