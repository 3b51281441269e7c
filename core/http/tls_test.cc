#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

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
    request_.url = StartServer({"-www"}) + "/";
  }

  void TearDown() override {
    for (const pid_t server : servers_) {
      kill(server, SIGKILL);
      waitpid(server, nullptr, 0);
    }
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  // Answers with the origin of a server that `openssl s_server` with `arguments` is, in
  // folder_.
  std::string StartServer(std::vector<std::string> arguments) {
    int out[2];
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    outputs_.emplace_back(out[0]);
    const UniqueFd write_end(out[1]);
    for (const char* argument :
         {"key.pem", "-key", "cert.pem", "-cert", "127.0.0.1:0", "-accept", "s_server", "openssl"})
      arguments.insert(arguments.begin(), argument);
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, write_end.get(), 1);
    posix_spawn_file_actions_addchdir_np(&actions, folder_.c_str());
    pid_t pid = -1;
    EXPECT_EQ(posix_spawnp(&pid, "openssl", &actions, nullptr, pointers.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    servers_.push_back(pid);
    std::string text;
    char piece[256];
    while (text.find("ACCEPT 127.0.0.1:") == std::string::npos || text.back() != '\n') {
      const ssize_t n = read(out[0], piece, sizeof piece);
      if (n <= 0) {
        ADD_FAILURE() << text;
        return "";
      }
      text.append(piece, static_cast<size_t>(n));
    }
    const size_t at = text.find("ACCEPT 127.0.0.1:") + 17;
    return "https://127.0.0.1:" + text.substr(at, text.find('\n', at) - at);
  }

  std::filesystem::path folder_;
  std::vector<pid_t> servers_;
  std::vector<UniqueFd> outputs_;  // of the servers
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

// A server that redirects to another one, which asks for a certificate.
class TlsRedirectTest : public TlsTest {
 protected:
  void SetUp() override {
    TlsTest::SetUp();
    other_ = StartServer({"-www", "-verify", "1"});
    origin_ = StartServer({"-HTTP", "-verify", "1"});
    std::ofstream(folder_ / "away")
        << "HTTP/1.1 307 Away\r\nContent-Length: 0\r\nLocation: " << other_ << "/\r\n\r\n";
    std::ofstream(folder_ / "here") << "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere";
  }

  // The body of an answer to `url`, or an error's message.
  static std::string Ask(const Options& options, const std::string& url) {
    Request request;
    request.url = url;
    const auto response = Client(options).Send(request, 1 << 20);
    return response.ok() ? response->body : Message(response.status());
  }

  std::string origin_, other_;
};

TEST_F(TlsRedirectTest, AClientCertificateIsShownToNoOtherServer) {
  Options options;
  options.ca_file = folder_ / "cert.pem";
  options.client_certificate = folder_ / "cert.pem";
  options.client_key = folder_ / "key.pem";
  EXPECT_THAT(Ask(options, other_ + "/"), HasSubstr("Client certificate"));
  EXPECT_THAT(Ask(options, origin_ + "/away"), HasSubstr("no client certificate available"));
  options.ca_file.clear();
  options.verify_tls = false;
  options.tls_origin = other_;
  EXPECT_THAT(Ask(options, other_ + "/"), HasSubstr("Client certificate"));
}

TEST_F(TlsRedirectTest, OnlyItsOriginMayBeUnverified) {
  Options options;
  options.verify_tls = false;
  EXPECT_THAT(Ask(options, origin_ + "/away"), HasSubstr("s_server"));
  options.tls_origin = origin_ + "/v2";
  EXPECT_EQ(Ask(options, origin_ + "/here"), "here");
  for (const std::string& url : {other_ + "/", origin_ + "/away"})
    EXPECT_THAT(Ask(options, url), HasSubstr("tls: SSL certificate problem")) << url;
  options.more_authorities = ReadFile(folder_ / "cert.pem", 10'000).value();
  EXPECT_THAT(Ask(options, origin_ + "/away"), HasSubstr("s_server"));
}

}  // namespace
}  // namespace kapsule::http
