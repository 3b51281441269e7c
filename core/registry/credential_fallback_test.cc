// BlobRanges whose first credentials are refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>

#include "core/registry/blob_ranges.h"
#include "core/registry/test_blobs.h"

namespace kapsule::registry {
namespace {

using http::TestServer;
using Answer = TestServer::Answer;
using Request = TestServer::Request;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string& Content() {
  static const auto* const content = new std::string(TestBytes(100'000));
  return *content;
}

std::string Header(const Request& request) {
  const auto header = request.headers.find("authorization");
  return header == request.headers.end() ? "" : header->second;
}

std::string Basic(const std::string& user) {
  return "Basic " + EncodeBase64(AsBytes(user + ":geheim"));
}

HostCredentialSource Users(const std::vector<std::string>& names) {
  return [names](const std::string&) {
    std::vector<Credentials> row;
    for (const std::string& name : names) row.push_back({name, "geheim", ""});
    return TheseCredentials(std::move(row));
  };
}

class BasicFallbackTest : public ::testing::Test {
 protected:
  Answer Serve(const Request& request) {
    if (Header(request) == Basic(known_)) return AnswerRange(request, Content());
    return TestServer::Reply(
        Header(request).empty() ? 401 : refusal_.load(), "",
        Header(request).empty() ? "WWW-Authenticate: Basic realm=\"x\"\r\n" : "");
  }

  std::string known_ = "right";
  std::atomic<int> refusal_ = 401;
  TestServer server_{[this](const Request& r) { return Serve(r); }};
};

TEST_F(BasicFallbackTest, TheNextAreTriedAndWhatWorkedIsKept) {
  for (const int status : {401, 403}) {
    refusal_ = status;
    const size_t before = server_.requests().size();
    const auto ranges = OpenRanges(Content(), HostsOf({&server_}),
                                   Users({"told", "told", "other", "right", "never"}));
    for (int i = 0; i < 3; ++i) EXPECT_EQ(ReadRange(*ranges, 7, 3).bytes, Content().substr(7, 3));
    std::vector<std::string> sent;
    for (const Request& request : server_.requests()) sent.push_back(Header(request));
    sent.erase(sent.begin(), sent.begin() + static_cast<long>(before));
    EXPECT_THAT(sent, ElementsAre("", Basic("told"), Basic("other"), Basic("right"), Basic("right"),
                                  Basic("right")))
        << status;
  }
}

TEST_F(BasicFallbackTest, WhereAllAreRefusedEachIsTriedOnce) {
  const auto ranges = OpenRanges(Content(), HostsOf({&server_}), Users({"a", "b"}));
  const ReadResult result = ReadRange(*ranges, 7, 3);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kPermissionDenied) << result.status;
  EXPECT_THAT(Message(result.status), Not(HasSubstr("geheim")));
  EXPECT_EQ(server_.requests().size(), 3u);
}

TEST_F(BasicFallbackTest, ARowWithoutAnEndEnds) {
  int made = 0;
  const auto ranges = OpenRanges(Content(), HostsOf({&server_}), [&](const std::string&) {
    return [&]() -> absl::StatusOr<std::optional<Credentials>> {
      if (++made % 2 == 0) return InvalidArgument("a broken place");
      return Credentials{"user" + std::to_string(made), "geheim", ""};
    };
  });
  const ReadResult result = ReadRange(*ranges, 7, 3);
  EXPECT_THAT(Message(result.status), HasSubstr("a broken place"));
  EXPECT_LE(server_.requests().size(), 40u);
}

// A registry whose tokens name the user that they are for, and its token service.
class BearerFallbackTest : public ::testing::Test {
 protected:
  Answer Serve(const Request& request) {
    absl::MutexLock lock(&mu_);
    if (request.target.starts_with("/token")) return Token(request);
    const std::string header = Header(request);
    if (header == "Bearer for " + allowed_) return AnswerRange(request, Content());
    if (!header.empty() && refusal_ == 403) return TestServer::Reply(403);
    return TestServer::Reply(401, "",
                             fmt::format("WWW-Authenticate: Bearer realm=\"http://{}/token\"\r\n",
                                         request.headers.at("host")));
  }

  Answer Token(const Request& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    std::string user = "nobody";
    if (request.method == "POST") {
      user = request.body.substr(request.body.find("refresh_token=") + 14);
      user = user.substr(0, user.find('&'));
    } else if (!Header(request).empty()) {
      const std::string pair = DecodeBase64(Header(request).substr(6)).value();
      user = pair.substr(0, pair.find(':'));
    }
    asked_.push_back(user);
    if (user.starts_with("bad"))
      return TestServer::Reply(token_refusal_, R"({"details":"no such user"})");
    return TestServer::Reply(200, fmt::format(R"({{"token":"for {}"}})", user));
  }

  ReadResult Read(const HostCredentialSource& source) {
    const auto ranges = OpenRanges(Content(), HostsOf({&server_}), source);
    return ReadRange(*ranges, 7, 3);
  }

  // The users that tokens were asked for, since the last call.
  std::vector<std::string> Asked() {
    absl::MutexLock lock(&mu_);
    return std::exchange(asked_, {});
  }
  void Allow(const std::string& user) {
    absl::MutexLock lock(&mu_);
    allowed_ = user;
  }

  std::atomic<int> refusal_ = 401, token_refusal_ = 401;
  absl::Mutex mu_;
  std::string allowed_ ABSL_GUARDED_BY(mu_) = "right";
  std::vector<std::string> asked_ ABSL_GUARDED_BY(mu_);
  TestServer server_{[this](const Request& r) { return Serve(r); }};
};

TEST_F(BearerFallbackTest, WhatTheTokenServiceRefusesIsFollowedByTheNext) {
  for (const int status : {401, 403}) {
    token_refusal_ = status;
    EXPECT_EQ(Read(Users({"bad1", "bad2", "right"})).bytes, Content().substr(7, 3));
    EXPECT_THAT(Asked(), ElementsAre("bad1", "bad2", "right"));
  }
}

TEST_F(BearerFallbackTest, ATokenThatTheRegistryRefusesIsFollowedByTheNext) {
  for (const int status : {401, 403}) {
    refusal_ = status;
    EXPECT_EQ(Read(Users({"weak", "right"})).bytes, Content().substr(7, 3));
    EXPECT_THAT(Asked(), ElementsAre("weak", "right"));
  }
}

TEST_F(BearerFallbackTest, NobodyComesLast) {
  Allow("nobody");
  EXPECT_EQ(Read(Users({"bad", "weak"})).bytes, Content().substr(7, 3));
  EXPECT_THAT(Asked(), ElementsAre("bad", "weak", "nobody"));
}

TEST_F(BearerFallbackTest, APlaceThatFailsHidesNotThatTheImageIsPublic) {
  Allow("nobody");
  const auto broken = [](const std::string&) {
    return [failed = false]() mutable -> absl::StatusOr<std::optional<Credentials>> {
      if (std::exchange(failed, true)) return std::nullopt;
      return InvalidArgument("a broken place");
    };
  };
  EXPECT_EQ(Read(broken).bytes, Content().substr(7, 3));
  Allow("right");
  EXPECT_THAT(Message(Read(broken).status), HasSubstr("a broken place"));
}

TEST_F(BearerFallbackTest, ARefreshTokenThatIsNotValidIsFollowedByTheNext) {
  token_refusal_ = 400;
  const auto source = [](const std::string&) {
    return TheseCredentials({{"", "", "bad-refresh"}, {"", "", "right"}});
  };
  EXPECT_EQ(Read(source).bytes, Content().substr(7, 3));
  EXPECT_THAT(Asked(), ElementsAre("bad-refresh", "right"));
}

TEST_F(BearerFallbackTest, AfterATokenIsRevokedTheFirstAreTriedAgain) {
  Allow("second");
  const auto ranges = OpenRanges(Content(), HostsOf({&server_}), Users({"first", "second"}));
  ASSERT_TRUE(ReadRange(*ranges, 7, 3).status.ok());
  Allow("first");
  ASSERT_TRUE(ReadRange(*ranges, 7, 3).status.ok());
  EXPECT_THAT(Asked(), ElementsAre("first", "second", "first"));
}

TEST_F(BearerFallbackTest, WhereAllAreRefusedTheServicesWordForTheFirstIsTold) {
  const ReadResult result = Read(Users({"bad", "weak"}));
  EXPECT_EQ(result.status.code(), absl::StatusCode::kPermissionDenied) << result.status;
  EXPECT_THAT(Message(result.status), AllOf(HasSubstr("token service answered 401: no such user"),
                                            Not(HasSubstr("geheim"))));
  EXPECT_THAT(Asked(), ElementsAre("bad", "weak", "nobody"));
}

TEST_F(BearerFallbackTest, ABrokenTokenServiceIsNoRefusal) {
  token_refusal_ = 503;
  const auto ranges =
      OpenRanges(Content(), HostsOf({&server_}), Users({"bad", "right"}), {.max_rounds = 1});
  EXPECT_EQ(ReadRange(*ranges, 7, 3).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Asked(), ElementsAre("bad"));
}

}  // namespace
}  // namespace kapsule::registry
