#include "core/registry/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "core/base/file.h"

namespace kapsule::registry {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// "publisher:geheim"
constexpr char kAuth[] = "cHVibGlzaGVyOmdlaGVpbQ==";

class CredentialsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/kapsule-credentials-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    path_ = getenv("PATH");
    setenv("PATH", (folder_.string() + ":" + path_).c_str(), 1);
  }
  void TearDown() override {
    setenv("PATH", path_.c_str(), 1);
    for (const char* variable : {"DOCKER_CONFIG", "REGISTRY_AUTH_FILE"}) unsetenv(variable);
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  fs::path File(const std::string& name, const std::string& text, mode_t mode = 0600) {
    const fs::path path = folder_ / name;
    std::ofstream(path) << text;
    chmod(path.c_str(), mode);
    return path;
  }
  void Helper(const std::string& name, const std::string& script) {
    File("docker-credential-" + name, "#!/bin/sh\n" + script, 0755);
  }
  absl::StatusOr<std::optional<Credentials>> Find(const std::string& config,
                                                  const std::string& host = "h.io") {
    return FindDockerCredentials({File("config.json", config)}, host);
  }

  fs::path folder_;
  std::string path_;
};

std::string Auths(const std::string& key) {
  return R"({"auths":{")" + key + R"(":{"auth":")" + kAuth + "\"}}}";
}

TEST_F(CredentialsTest, ReadsAuthsUnderEveryUsualKey) {
  for (const char* key : {"h.io", "https://h.io", "http://h.io/", "https://h.io/v2/"}) {
    const auto found = Find(Auths(key)).value();
    ASSERT_TRUE(found) << key;
    EXPECT_EQ(found->username, "publisher");
    EXPECT_EQ(found->password, "geheim");
  }
  EXPECT_FALSE(Find(Auths("h.io.evil.com")).value());
  EXPECT_FALSE(Find(Auths("h.io"), "h.io:5000").value());
  EXPECT_TRUE(Find(Auths("127.0.0.1:5000"), "127.0.0.1:5000").value());
  EXPECT_TRUE(Find(Auths("https://index.docker.io/v1/"), "docker.io").value());
}

TEST_F(CredentialsTest, ReadsAnIdentityToken) {
  const auto found = Find(R"({"auths":{"h.io":{"identitytoken":"refresh"}}})").value();
  EXPECT_EQ(found.value().identity_token, "refresh");
}

TEST_F(CredentialsTest, AnEmptyEntryIsNone) {
  EXPECT_FALSE(Find(R"({"auths":{"h.io":{}}})").value());
  EXPECT_FALSE(Find("{}").value());
  EXPECT_FALSE(Find(R"({"credsStore":"","credHelpers":{}})").value());
}

TEST_F(CredentialsTest, ErrorsNameTheFileAndNoSecret) {
  for (const std::string config :
       {"{", R"({"auths":{"h.io":{"auth":"Z2VoZWlt"}}})",
        R"({"auths":{"h.io":{"auth":"?geheim"}}})", R"({"auths":{"h.io":{"auth":7}}})",
        R"({"credsStore":7})", R"({"credsStore":"../../x"})",
        R"({"credHelpers":{"h.io":"a b"}})"}) {
    const auto found = Find(config);
    ASSERT_FALSE(found.ok()) << config;
    EXPECT_THAT(Message(found.status()), HasSubstr("config.json"));
    EXPECT_THAT(Message(found.status()), Not(HasSubstr("geheim")));
  }
}

TEST_F(CredentialsTest, TheFirstFileThatHasSomeWins) {
  const fs::path empty = File("empty.json", "{}"), full = File("full.json", Auths("h.io"));
  const auto found = FindDockerCredentials({folder_ / "none.json", empty, full}, "h.io").value();
  EXPECT_TRUE(found);
  EXPECT_FALSE(FindDockerCredentials({}, "h.io").value());
}

TEST_F(CredentialsTest, TheEnvironmentNamesTheFiles) {
  setenv("DOCKER_CONFIG", "/d", 1);
  setenv("REGISTRY_AUTH_FILE", "/r.json", 1);
  EXPECT_THAT(DockerConfigFiles(), ElementsAre("/d/config.json", "/r.json"));
  unsetenv("DOCKER_CONFIG");
  setenv("HOME", "/h", 1);
  EXPECT_THAT(DockerConfigFiles(), ElementsAre("/r.json", "/h/.docker/config.json"));
}

TEST_F(CredentialsTest, AHelperIsAskedForItsServer) {
  Helper("test", R"(read server; printf '{"ServerURL":"%s","Username":"%s","Secret":"s3"}' )"
                 R"("$server" "$1-$server")");
  const auto found = Find(R"({"credHelpers":{"h.io":"test"}})").value();
  EXPECT_EQ(found.value().username, "get-h.io");
  EXPECT_EQ(found->password, "s3");
  const auto hub = Find(R"({"credsStore":"test"})", "docker.io").value();
  EXPECT_EQ(hub.value().username, "get-https://index.docker.io/v1/");
}

TEST_F(CredentialsTest, AHelpersTokenIsAnIdentityToken) {
  Helper("test", R"(echo '{"Username":"<token>","Secret":"refresh"}')");
  EXPECT_EQ(Find(R"({"credsStore":"test"})").value()->identity_token, "refresh");
}

TEST_F(CredentialsTest, AHelperThatKnowsNothingLeavesTheAuths) {
  Helper("test", "echo 'credentials not found in native keychain'; exit 1");
  const std::string auths = Auths("h.io");
  EXPECT_TRUE(Find(R"({"credsStore":"test",)" + auths.substr(1)).value());
}

TEST_F(CredentialsTest, HelpersThatFailAreErrors) {
  const milliseconds timeout{30'000};
  EXPECT_EQ(AskCredentialHelper("missing", "h.io", timeout).status().code(),
            absl::StatusCode::kFailedPrecondition);
  Helper("fails", "echo geheim; exit 3");
  const auto failed = AskCredentialHelper("fails", "h.io", timeout);
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(failed.status()), Not(HasSubstr("geheim")));
  Helper("garbage", "echo geheim");
  const auto garbage = AskCredentialHelper("garbage", "h.io", timeout);
  EXPECT_EQ(garbage.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(garbage.status()), Not(HasSubstr("geheim")));
}

TEST_F(CredentialsTest, HelpersAreBounded) {
  Helper("endless", "exec yes");
  EXPECT_EQ(AskCredentialHelper("endless", "h.io", milliseconds(30'000)).status().code(),
            absl::StatusCode::kInvalidArgument);
  Helper("sleeps", "exec sleep 100");
  EXPECT_EQ(AskCredentialHelper("sleeps", "h.io", milliseconds(200)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace kapsule::registry
