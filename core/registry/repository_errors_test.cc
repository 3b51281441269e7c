// Against registries that fail or lie.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "core/http/test_server.h"
#include "core/registry/repository.h"

namespace kapsule::registry {
namespace {

using http::TestServer;
using Answer = TestServer::Answer;
using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kManifest[] = R"({"schemaVersion":2})";

Options Hasty() {
  Options options;
  options.insecure = true;
  options.username = "u";
  options.retry.first_delay = milliseconds(10);
  return options;
}

Repository Open(const TestServer& server, const Options& options = Hasty()) {
  return Repository(
      oci::Reference::Parse(fmt::format("127.0.0.1:{}/acme/tiny:enc", server.port())).value(),
      options);
}

TEST(RetryTest, ABusyRegistryIsAskedAgain) {
  for (const int status : {429, 500, 502, 503, 504}) {
    std::atomic<int> calls = 0;
    TestServer server([&](const auto&) {
      return ++calls < 3 ? TestServer::Reply(status) : TestServer::Reply(200, kManifest);
    });
    EXPECT_TRUE(Open(server).GetManifest(std::nullopt).ok()) << status;
    EXPECT_EQ(calls, 3);
  }
}

TEST(RetryTest, ABrokenConnectionIsAskedAgain) {
  std::atomic<int> calls = 0;
  TestServer server([&](const auto&) {
    return ++calls < 3 ? Answer{"", Answer::kClose} : TestServer::Reply(200, kManifest);
  });
  EXPECT_TRUE(Open(server).GetManifest(std::nullopt).ok());
}

TEST(RetryTest, ItGivesUpAndSaysWhy) {
  TestServer server([](const auto&) {
    return TestServer::Reply(503,
                             R"({"errors":[{"code":"BUSY","message":"come \u001b[31mback"}]})");
  });
  const auto manifest = Open(server).GetManifest(std::nullopt);
  EXPECT_EQ(manifest.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(manifest.status()), HasSubstr("registry answered 503: BUSY: come ?[31mback"));
  EXPECT_EQ(server.requests().size(), 5u);
}

TEST(RetryTest, RetryAfterIsObeyed) {
  std::atomic<int> calls = 0;
  TestServer server([&](const auto&) {
    return ++calls < 2 ? TestServer::Reply(429, "", "Retry-After: 1\r\n")
                       : TestServer::Reply(200, kManifest);
  });
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(Open(server).GetManifest(std::nullopt).ok());
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(1000));
}

TEST(RetryTest, OtherErrorsAreFinal) {
  for (const int status : {400, 403, 404, 405, 501}) {
    TestServer server([&](const auto&) { return TestServer::Reply(status); });
    EXPECT_FALSE(Open(server).GetManifest(std::nullopt).ok());
    EXPECT_EQ(server.requests().size(), 1u) << status;
  }
}

TEST(RetryTest, UploadsAreSentOnce) {
  TestServer server([](const TestServer::Request& r) {
    return r.method == "POST" ? TestServer::Reply(202, "", "Location: /session\r\n")
                              : TestServer::Reply(500);
  });
  Repository repository = Open(server);
  auto upload = repository.StartBlob(std::nullopt).value();
  ASSERT_TRUE(upload->Write(AsBytes("blob")).ok());
  const absl::Status status = upload->Commit(oci::Digest::Of(AsBytes("blob")), 4);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("/acme/tiny:enc: blob sha256:"));
  size_t patches = 0;
  for (const auto& request : server.requests()) patches += request.method == "PATCH";
  EXPECT_EQ(patches, 1u);
}

class BlobLieTest : public ::testing::Test {
 protected:
  static absl::Status Read(const Answer& answer, uint64_t size = 7) {
    TestServer server([&](const auto&) { return answer; });
    oci::Descriptor blob;
    blob.digest = oci::Digest::Of(AsBytes("content"));
    blob.size = size;
    Options options = Hasty();
    if (answer.then == Answer::kStall) options.http.stall_timeout = milliseconds(300);
    return Open(server, options).ReadBlob(blob, [](ByteSpan) { return absl::OkStatus(); });
  }
};

TEST_F(BlobLieTest, TheTruthIsAccepted) {
  EXPECT_TRUE(Read(TestServer::Reply(200, "content")).ok());
}

TEST_F(BlobLieTest, OtherBytesAreDataLoss) {
  EXPECT_EQ(Read(TestServer::Reply(200, "c0ntent")).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Read(TestServer::Reply(200, "conten")).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Read(TestServer::Reply(200, "content!")).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Read(TestServer::Reply(200, "")).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Read(TestServer::Reply(204)).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(BlobLieTest, AnEndlessBlobIsCutOff) {
  EXPECT_EQ(Read({"HTTP/1.1 200 OK\r\n\r\ncontent", Answer::kRepeat}).code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(BlobLieTest, ABrokenOrStalledStreamIsNotDeliveredTwice) {
  int calls = 0;
  TestServer server([&](const auto&) {
    ++calls;
    return Answer{"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ncon", Answer::kClose};
  });
  oci::Descriptor blob;
  blob.digest = oci::Digest::Of(AsBytes("content"));
  blob.size = 7;
  std::string got;
  const absl::Status status = Open(server).ReadBlob(blob, [&](ByteSpan bytes) {
    got += AsText(bytes);
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(got, "con");
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(Read({"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ncon", Answer::kStall}).code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(BlobLieTest, TheSinksErrorIsReturned) {
  TestServer server([](const auto&) { return TestServer::Reply(200, "content"); });
  oci::Descriptor blob;
  blob.digest = oci::Digest::Of(AsBytes("content"));
  blob.size = 7;
  EXPECT_EQ(
      Open(server).ReadBlob(blob, [](ByteSpan) { return ResourceExhausted("disk full"); }).code(),
      absl::StatusCode::kResourceExhausted);
}

TEST(ManifestLieTest, ItsDigestIsChecked) {
  TestServer server([](const auto&) {
    return TestServer::Reply(200, kManifest,
                             "Docker-Content-Digest: " + oci::Digest().text() + "\r\n");
  });
  Repository repository = Open(server);
  EXPECT_EQ(repository.GetManifest(std::nullopt).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(repository.GetManifest(oci::Digest()).status().code(), absl::StatusCode::kDataLoss);
}

TEST(ManifestLieTest, TheBodysTypeIsItsType) {
  TestServer server([](const TestServer::Request& r) {
    EXPECT_THAT(r.headers.at("accept"), HasSubstr("application/vnd."));
    return TestServer::Reply(200, kManifest, "Content-Type: application/x; charset=utf-8\r\n");
  });
  EXPECT_EQ(Open(server).GetManifest(std::nullopt)->media_type, "application/x");
}

TEST(ManifestLieTest, HugeManifestsAreRefused) {
  TestServer server([](const auto&) {
    return Answer{"HTTP/1.1 200 OK\r\n\r\n" + std::string(1 << 20, ' '), Answer::kRepeat};
  });
  EXPECT_EQ(Open(server).GetManifest(std::nullopt).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(UploadLieTest, ASessionMustHaveAPlace) {
  for (const std::string headers :
       {"", "Location: file:///etc/passwd\r\n", "Location: http://u:p@h/\r\n"}) {
    TestServer server([&](const auto&) { return TestServer::Reply(202, "", headers); });
    EXPECT_FALSE(Open(server).StartBlob(std::nullopt).ok()) << headers;
  }
}

TEST(UploadLieTest, ARefusalInTheMiddleIsReported) {
  TestServer server([](const TestServer::Request& r) {
    if (r.method == "POST")
      return TestServer::Reply(202, "", "Location: /session?_state=geheim\r\n");
    if (r.method == "PATCH")
      return TestServer::Reply(413, R"({"errors":[{"code":"TOOBIG","message":"quota"}]})");
    return TestServer::Reply(204);
  });
  Repository repository = Open(server);
  auto upload = repository.StartBlob(std::nullopt).value();
  ASSERT_TRUE(upload->Write(AsBytes(std::string(3 << 20, 'x'))).ok());
  const absl::Status status = upload->Commit(oci::Digest(), 3 << 20);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("registry answered 413: TOOBIG: quota"));
  EXPECT_THAT(Message(status), Not(HasSubstr("geheim")));
  upload.reset();
  EXPECT_EQ(server.requests().back().method, "DELETE");
}

}  // namespace
}  // namespace kapsule::registry
