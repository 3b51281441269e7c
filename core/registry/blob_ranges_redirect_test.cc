// BlobRanges behind redirects and token services.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "core/registry/blob_ranges.h"
#include "core/registry/test_blobs.h"

namespace kapsule::registry {
namespace {

using http::TestServer;
using Answer = TestServer::Answer;
using Request = TestServer::Request;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string& Content() {
  static const auto* const content = new std::string(TestBytes(100'000));
  return *content;
}

// A registry that sends its clients to a store whose urls are signed.
class RedirectTest : public ::testing::Test {
 protected:
  static bool Has(const Request& request, const char* header) {
    return request.headers.contains(header);
  }

  std::atomic<int> signature_ = 1;
  std::atomic<int> refusal_ = 403;
  TestServer store_{[this](const Request& request) {
    if (request.target == fmt::format("/blob?sig=geheim{}", signature_.load()))
      return AnswerRange(request, Content());
    return TestServer::Reply(refusal_);
  }};
  TestServer registry_{[this](const Request&) {
    return TestServer::Reply(
        307, "",
        fmt::format("Location: {}/blob?sig=geheim{}\r\n", store_.origin(), signature_.load()));
  }};
  std::unique_ptr<BlobRanges> ranges_ =
      OpenRanges(Content(), HostsOf({&registry_}), NoCredentials, {.max_rounds = 2});
};

TEST_F(RedirectTest, TheRegistryIsAskedOnce) {
  for (int i = 0; i < 4; ++i) EXPECT_EQ(ReadRange(*ranges_, 7, 3).bytes, Content().substr(7, 3));
  EXPECT_EQ(registry_.requests().size(), 1u);
  EXPECT_EQ(store_.requests().size(), 4u);
}

TEST_F(RedirectTest, AnExpiredUrlIsAskedForOnceMore) {
  for (const int status : {400, 401, 403, 404, 410}) {
    refusal_ = status;
    ASSERT_TRUE(ReadRange(*ranges_, 7, 3).status.ok());
    const size_t before = registry_.requests().size();
    ++signature_;
    EXPECT_EQ(ReadRange(*ranges_, 7, 3).bytes, Content().substr(7, 3));
    EXPECT_EQ(registry_.requests().size(), before + 1) << status;
  }
}

TEST_F(RedirectTest, AUrlThatExpiresInMidReadIsAskedForOnceMoreAndTheReadGoesOn) {
  std::atomic<int> signature = 1;
  TestServer store([&](const Request& request) {
    if (request.target != fmt::format("/blob?sig={}", signature.load()))
      return TestServer::Reply(403);
    Answer answer = AnswerRange(request, Content());
    if (signature == 2) return answer;
    signature = 2;
    answer.bytes.resize(answer.bytes.find("\r\n\r\n") + 4 + 5000);
    answer.then = Answer::kClose;
    return answer;
  });
  TestServer registry([&](const Request&) {
    return TestServer::Reply(
        307, "", fmt::format("Location: {}/blob?sig={}\r\n", store.origin(), signature.load()));
  });
  const auto ranges = OpenRanges(Content(), HostsOf({&registry}));
  EXPECT_TRUE(ReadRange(*ranges, 100, 20'000).bytes == Content().substr(100, 20'000));
  EXPECT_EQ(registry.requests().size(), 2u);
  EXPECT_EQ(store.requests().back().headers.at("range"), "bytes=5100-20099");
}

TEST_F(RedirectTest, AStoreThatRefusesANewUrlIsAnError) {
  TestServer store([](const Request&) { return TestServer::Reply(403); });
  TestServer registry([&](const Request&) {
    return TestServer::Reply(307, "", "Location: " + store.origin() + "/b?sig=geheim\r\n");
  });
  const auto ranges = OpenRanges(Content(), HostsOf({&registry}));
  const ReadResult result = ReadRange(*ranges, 7, 3);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(
      Message(result.status),
      AllOf(HasSubstr(fmt::format("127.0.0.1:{} answered 403", store.port())),
            HasSubstr(fmt::format("127.0.0.1:{}: ", registry.port())), Not(HasSubstr("geheim"))));
  EXPECT_EQ(registry.requests().size(), 1u);
}

TEST_F(RedirectTest, ABusyStoreIsAskedAgainAndNotTheRegistry) {
  ASSERT_TRUE(ReadRange(*ranges_, 7, 3).status.ok());
  refusal_ = 503;
  ++signature_;
  const ReadResult result = ReadRange(*ranges_, 7, 3);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(registry_.requests().size(), 1u);
}

TEST_F(RedirectTest, MessagesShowNoSignature) {
  TestServer store([](const Request&) { return Answer{"", Answer::kClose}; });
  TestServer registry([&](const Request&) {
    return TestServer::Reply(307, "", "Location: " + store.origin() + "/b?sig=geheim\r\n");
  });
  const auto ranges = OpenRanges(Content(), HostsOf({&registry}), NoCredentials, {.max_rounds = 1});
  const ReadResult result = ReadRange(*ranges, 7, 3);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(result.status), Not(HasSubstr("geheim")));
}

TEST_F(RedirectTest, OnlyHttpIsFollowed) {
  for (const std::string target :
       {"file:///etc/passwd", "unix:///run/x.sock", "ftp://127.0.0.1/"}) {
    TestServer registry(
        [&](const Request&) { return TestServer::Reply(307, "", "Location: " + target + "\r\n"); });
    const auto ranges = OpenRanges(Content(), HostsOf({&registry}));
    EXPECT_EQ(ReadRange(*ranges, 7, 3).status.code(), absl::StatusCode::kInvalidArgument) << target;
    EXPECT_EQ(registry.requests().size(), 1u);
  }
}

TEST_F(RedirectTest, LoopsEnd) {
  TestServer loop([](const Request&) { return TestServer::Reply(307, "", "Location: /x\r\n"); });
  const auto ranges = OpenRanges(Content(), HostsOf({&loop}));
  EXPECT_EQ(ReadRange(*ranges, 7, 3).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(loop.requests().size(), 6u);
}

// A registry with a token service, and a store behind it.
class RangeTokenTest : public ::testing::Test {
 protected:
  Answer Serve(const Request& request) {
    if (request.target.starts_with("/token")) {
      ++tokens_;
      if (request.headers.contains("authorization") != wants_password_)
        return TestServer::Reply(401, R"({"details":"no"})");
      return TestServer::Reply(200, fmt::format(R"({{"token":"t{}"}})", valid_.load()));
    }
    const auto header = request.headers.find("authorization");
    if (header == request.headers.end() ||
        header->second != fmt::format("Bearer t{}", valid_.load()))
      return TestServer::Reply(
          401, "",
          fmt::format("WWW-Authenticate: Bearer realm=\"{}/token\"\r\n", server_.origin()));
    if (redirects_) return TestServer::Reply(307, "", "Location: " + store_.origin() + "/blob\r\n");
    Answer answer = AnswerRange(request, Content());
    if (!expires_.exchange(false)) return answer;
    ++valid_;
    answer.bytes.resize(answer.bytes.find("\r\n\r\n") + 4 + 5000);
    answer.then = Answer::kClose;
    return answer;
  }

  std::atomic<bool> expires_ = false;  // the token, in the middle of the next answer
  std::atomic<int> tokens_ = 0, valid_ = 1;
  std::atomic<bool> wants_password_ = false, redirects_ = false;
  TestServer store_{[](const Request& r) { return AnswerRange(r, Content()); }};
  TestServer server_{[this](const Request& r) { return Serve(r); }};
};

TEST_F(RangeTokenTest, ATokenIsFetchedOnceAndRenewedInUse) {
  const auto ranges = OpenRanges(Content(), HostsOf({&server_}));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(ReadRange(*ranges, 7, 3).status.ok());
  EXPECT_EQ(tokens_, 1);
  valid_ = 2;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(ReadRange(*ranges, 7, 3).bytes, Content().substr(7, 3));
  EXPECT_EQ(tokens_, 2);
  EXPECT_EQ(ranges->challenges(), 2u);
}

TEST_F(RangeTokenTest, OneThatExpiresInMidReadIsRenewedOnceAndTheReadGoesOn) {
  const auto ranges = OpenRanges(Content(), HostsOf({&server_}));
  ASSERT_TRUE(ReadRange(*ranges, 7, 3).status.ok());
  expires_ = true;
  EXPECT_TRUE(ReadRange(*ranges, 100, 20'000).bytes == Content().substr(100, 20'000));
  EXPECT_EQ(tokens_, 2);
  EXPECT_EQ(server_.requests().back().headers.at("range"), "bytes=5100-20099");
}

TEST_F(RangeTokenTest, AStoreSeesNoToken) {
  redirects_ = true;
  const auto ranges = OpenRanges(Content(), HostsOf({&server_}));
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(ReadRange(*ranges, 7, 3).status.ok());
  for (const Request& request : store_.requests())
    EXPECT_FALSE(request.headers.contains("authorization"));
  EXPECT_EQ(store_.requests().size(), 2u);
}

TEST_F(RangeTokenTest, EachHostIsGivenItsOwnCredentials) {
  wants_password_ = true;
  std::vector<std::string> asked;
  const auto ranges = OpenRanges(Content(), HostsOf({&server_}), [&](const std::string& host) {
    asked.push_back(host);
    return TheseCredentials({{"user", "geheim", ""}});
  });
  EXPECT_TRUE(ReadRange(*ranges, 7, 3).status.ok());
  EXPECT_THAT(asked, ::testing::ElementsAre(HostsOf({&server_})[0].name));
}

TEST_F(RangeTokenTest, ARefusedPasswordIsPermissionDenied) {
  wants_password_ = true;
  const auto ranges = OpenRanges(Content(), HostsOf({&server_}));
  const ReadResult result = ReadRange(*ranges, 7, 3);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kPermissionDenied) << result.status;
  EXPECT_EQ(tokens_, 1);
}

TEST_F(RangeTokenTest, ARegistryTokenIsSentAsItIs) {
  const auto ranges = OpenRanges(Content(), HostsOf({&server_}), [](const std::string&) {
    return TheseCredentials({{"", "", "", "t1"}});
  });
  EXPECT_TRUE(ReadRange(*ranges, 7, 3).status.ok());
  EXPECT_EQ(tokens_, 0);
  valid_ = 2;
  wants_password_ = true;
  EXPECT_EQ(ReadRange(*ranges, 7, 3).status.code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(RangeTokenTest, ATokenServiceThatHangsIsBoundByTheDeadline) {
  TestServer server([](const Request& request) {
    if (request.target.starts_with("/token")) return Answer{"", Answer::kStall};
    return TestServer::Reply(401, "",
                             fmt::format("WWW-Authenticate: Bearer realm=\"http://{}/token\"\r\n",
                                         request.headers.at("host")));
  });
  const auto start = std::chrono::steady_clock::now();
  const auto ranges = OpenRanges(Content(), HostsOf({&server}));
  EXPECT_EQ(ReadRange(*ranges, 7, 3, milliseconds(300)).status.code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(5));
}

}  // namespace
}  // namespace kapsule::registry
