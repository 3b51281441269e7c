#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/http/client.h"

namespace kapsule::http {
namespace {

using ::testing::HasSubstr;

// `openssl s_server -www` with a certificate of its own for 127.0.0.1.
class TlsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/kapsule-tls-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    const std::string make = fmt::format(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 "
        "-keyout {0}/key.pem -out {0}/cert.pem 2>/dev/null",
        name);
    ASSERT_EQ(system(make.c_str()), 0);
    StartServer();
  }

  void TearDown() override {
    if (server_ > 0) {
      kill(server_, SIGKILL);
      waitpid(server_, nullptr, 0);
    }
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  void StartServer() {
    int out[2];
    ASSERT_EQ(pipe2(out, O_CLOEXEC), 0);
    const UniqueFd read_end(out[0]), write_end(out[1]);
    const std::string cert = folder_ / "cert.pem", key = folder_ / "key.pem";
    const char* arguments[] = {"openssl", "s_server",   "-www", "-accept",   "127.0.0.1:0",
                               "-cert",   cert.c_str(), "-key", key.c_str(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, write_end.get(), 1);
    ASSERT_EQ(posix_spawnp(&server_, "openssl", &actions, nullptr, const_cast<char**>(arguments),
                           environ),
              0);
    posix_spawn_file_actions_destroy(&actions);
    std::string text;
    char piece[256];
    while (text.find("ACCEPT 127.0.0.1:") == std::string::npos || text.back() != '\n') {
      const ssize_t n = read(read_end.get(), piece, sizeof piece);
      ASSERT_GT(n, 0);
      text.append(piece, static_cast<size_t>(n));
    }
    const size_t at = text.find("ACCEPT 127.0.0.1:") + 17;
    request_.url = "https://127.0.0.1:" + text.substr(at, text.find('\n', at) - at) + "/";
  }

  std::filesystem::path folder_;
  pid_t server_ = -1;
  Request request_;
};

TEST_F(TlsTest, AnUnknownAuthorityIsRefused) {
  const auto response = Client({}).Send(request_, 1 << 20);
  EXPECT_EQ(response.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(response.status()), HasSubstr("certificate"));
}

TEST_F(TlsTest, TheAuthorityCanBeNamed) {
  Options options;
  options.ca_file = folder_ / "cert.pem";
  const auto response = Client(options).Send(request_, 1 << 20);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->status, 200);
}

TEST_F(TlsTest, AnAuthorityCanStandBesideTheSystems) {
  Options options;
  options.more_authorities = ReadFile(folder_ / "cert.pem", 10'000).value();
  options.http2 = true;  // which this server has not
  const auto response = Client(options).Send(request_, 1 << 20);
  ASSERT_TRUE(response.ok()) << response.status();
  options.more_authorities = "nonsense";
  EXPECT_EQ(Client(options).Send(request_, 1 << 20).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(TlsTest, AMissingClientCertificateIsNamed) {
  Options options;
  options.ca_file = folder_ / "cert.pem";
  options.client_certificate = folder_ / "none.pem";
  const auto response = Client(options).Send(request_, 1 << 20);
  EXPECT_EQ(response.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(response.status()), HasSubstr("none.pem"));
}

TEST_F(TlsTest, VerificationCanBeSwitchedOff) {
  Options options;
  options.verify_tls = false;
  EXPECT_TRUE(Client(options).Send(request_, 1 << 20).ok());
}

TEST_F(TlsTest, AMissingAuthorityFileIsNamed) {
  Options options;
  options.ca_file = folder_ / "none.pem";
  const auto response = Client(options).Send(request_, 1 << 20);
  EXPECT_EQ(response.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(response.status()), HasSubstr("none.pem"));
}

}  // namespace
}  // namespace kapsule::http
