// BlobRanges against the real registry: open, with a password, and with TLS.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "core/base/file.h"
#include "core/registry/blob_ranges.h"
#include "core/registry/credential_chain.h"
#include "core/registry/repository.h"
#include "core/registry/test_blobs.h"
#include "core/registry/test_registry.h"

namespace kapsule::registry {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using Access = TestRegistry::Access;

class RealRegistryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    unsetenv("REGISTRY_AUTH_FILE");
    setenv("DOCKER_CONFIG", "/nonexistent", 1);
    char name[] = "/tmp/kapsule-ranges-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  void StartRegistry(Access access, const std::string& http = "") {
    auto registry = TestRegistry::Start(access, http);
    ASSERT_TRUE(registry.ok()) << registry.status();
    registry_ = *std::move(registry);
  }

  void Push(const Options& options) {
    Repository repository(oci::Reference::Parse(registry_->host() + "/acme/tiny:enc").value(),
                          options);
    auto upload = repository.StartBlob(std::nullopt);
    ASSERT_TRUE(upload.ok()) << upload.status();
    ASSERT_TRUE((*upload)->Write(AsBytes(content_)).ok());
    ASSERT_TRUE((*upload)->Commit(oci::Digest::Of(AsBytes(content_)), content_.size()).ok());
  }

  // With the hosts that <folder_>/certs.d names.
  std::unique_ptr<BlobRanges> OpenBlob(const CredentialChain& chain = {},
                                       const std::string& repository = "acme/tiny") {
    http::Options options = RangeConnections();
    options.http2 = true;
    const auto hosts = FindHosts(folder_ / "certs.d", registry_->host()).value();
    return BlobRanges::Open(
               {registry_->host(), repository, oci::Digest::Of(AsBytes(content_)), content_.size()},
               ConnectHosts(hosts, options).value(),
               [chain, repository](const std::string& host) {
                 return FindCredentials(chain, host, repository);
               },
               {})
        .value();
  }

  void ExpectTruth(BlobRanges& ranges) {
    for (const auto& [offset, size] : {std::pair(0, 10), {1'234'567, 100'000}, {1'999'999, 1}}) {
      const ReadResult result = ReadRange(ranges, offset, size);
      EXPECT_TRUE(result.status.ok()) << result.status;
      EXPECT_TRUE(result.bytes == content_.substr(offset, size));
    }
  }

  std::string Log() const { return ReadFile(registry_->folder() / "log", 1 << 20).value(); }

  const std::string content_ = TestBytes(2'000'000);
  fs::path folder_;
  std::unique_ptr<TestRegistry> registry_;
};

Options Plain() {
  Options options;
  options.insecure = true;
  return options;
}

TEST_F(RealRegistryTest, RangesAreRead) {
  StartRegistry(Access::kOpen);
  Push(Plain());
  ExpectTruth(*OpenBlob());
}

TEST_F(RealRegistryTest, WhatIsNotThereIsNotFound) {
  StartRegistry(Access::kOpen);
  const auto ranges = OpenBlob({}, "acme/none");
  const ReadResult result = ReadRange(*ranges, 0, 1);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(result.status), HasSubstr(registry_->host() + " answered 404: "));
}

TEST_F(RealRegistryTest, APasswordIsTakenFromTheChain) {
  StartRegistry(Access::kPassword);
  Options options = Plain();
  options.username = TestRegistry::kUser;
  options.password = TestRegistry::kPassword;
  Push(options);
  CredentialChain chain;
  chain.told = {{registry_->host(), {TestRegistry::kUser, TestRegistry::kPassword, ""}}};
  ExpectTruth(*OpenBlob(chain));
  chain.told[0].credentials.password = "wrong";
  EXPECT_EQ(ReadRange(*OpenBlob(chain), 0, 1).status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReadRange(*OpenBlob(), 0, 1).status.code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(RealRegistryTest, WhatIsToldAndRefusedHidesNoFile) {
  StartRegistry(Access::kPassword);
  Options options = Plain();
  options.username = TestRegistry::kUser;
  options.password = TestRegistry::kPassword;
  Push(options);
  CredentialChain chain;
  chain.told = {{registry_->host() + "/acme/tiny", {"publisher", "of another time", ""}}};
  chain.docker_configs = {folder_ / "config.json"};
  std::ofstream(folder_ / "config.json")
      << R"({"auths":{")" << registry_->host() << R"(":{"username":")" << TestRegistry::kUser
      << R"(","password":")" << TestRegistry::kPassword << R"("}}})";
  ExpectTruth(*OpenBlob(chain));
}

TEST_F(RealRegistryTest, WhatIsToldForAnotherRepositoryIsNotUsed) {
  StartRegistry(Access::kPassword);
  Options options = Plain();
  options.username = TestRegistry::kUser;
  options.password = TestRegistry::kPassword;
  Push(options);
  CredentialChain chain;
  for (const std::string other : {"acme", "acme/tin", "acme/tiny/x", "other/tiny"})
    chain.told.push_back(
        {registry_->host() + "/" + other, {TestRegistry::kUser, TestRegistry::kPassword, ""}});
  EXPECT_EQ(ReadRange(*OpenBlob(chain), 0, 1).status.code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(RealRegistryTest, ARotatedPasswordFileIsReadAgain) {
  StartRegistry(Access::kPassword);
  Options options = Plain();
  options.username = TestRegistry::kUser;
  options.password = TestRegistry::kPassword;
  Push(options);
  CredentialChain chain;
  chain.docker_configs = {folder_ / "config.json"};
  const auto write = [&](const std::string& pair) {
    std::ofstream(folder_ / "config.json")
        << R"({"auths":{")" << registry_->host() << R"(":{"auth":")" << EncodeBase64(AsBytes(pair))
        << "\"}}}";
  };
  write("publisher:old");
  const auto ranges = OpenBlob(chain);
  EXPECT_EQ(ReadRange(*ranges, 0, 1).status.code(), absl::StatusCode::kPermissionDenied);
  write("publisher:open sesame");
  ExpectTruth(*ranges);
}

// A registry that wants a certificate of its clients, signed by an authority of
// our own, as hosts.toml describes it.
class RealTlsTest : public RealRegistryTest {
 protected:
  void SetUp() override {
    RealRegistryTest::SetUp();
    const std::string key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    Run("openssl req -x509 " + key + " -days 2 -subj /CN=authority -keyout ca.key -out ca.crt");
    for (const std::string name : {"server", "client"}) {
      Run("openssl req " + key + " -subj /CN=" + name +
          " -addext subjectAltName=IP:127.0.0.1 -keyout " + name + ".key -out " + name + ".csr");
      Run("openssl x509 -req -copy_extensions copy -days 2 -CA ca.crt -CAkey ca.key"
          " -CAcreateserial -in " +
          name + ".csr -out " + name + ".crt");
    }
    StartRegistry(Access::kOpen, fmt::format("  tls:\n"
                                             "    certificate: {0}/server.crt\n"
                                             "    key: {0}/server.key\n"
                                             "    clientcas: [{0}/ca.crt]\n",
                                             folder_.string()));
    Options options;
    options.http.ca_file = folder_ / "ca.crt";
    options.http.client_certificate = folder_ / "client.crt";
    options.http.client_key = folder_ / "client.key";
    Push(options);
  }

  void Run(const std::string& command) {
    ASSERT_EQ(system(("cd " + folder_.string() + " && " + command + " 2>/dev/null").c_str()), 0)
        << command;
  }

  void WriteHosts(const std::string& keys) {
    const fs::path folder = folder_ / "certs.d" / registry_->host();
    fs::create_directories(folder);
    std::ofstream(folder / "hosts.toml") << "server = \"https://" << registry_->host() << "\"\n"
                                         << keys;
  }

  ReadResult ReadOne(std::chrono::seconds time = std::chrono::seconds(20)) {
    return ReadRange(*OpenBlob(), 7, 3, time);
  }
};

TEST_F(RealTlsTest, AuthorityAndClientCertificateComeFromHostsToml) {
  WriteHosts("ca = \"../../ca.crt\"\nclient = [[\"../../client.crt\", \"../../client.key\"]]\n");
  ExpectTruth(*OpenBlob());
  EXPECT_THAT(Log(), HasSubstr("HTTP/2.0"));
}

// A registry of plain http with everything in its hosts.toml sends its clients to this
// one, for a token or for the blob: there only what the system says counts.
TEST_F(RealTlsTest, AnotherHostsSkipVerifyAndCertificateHoldNotHere) {
  const std::string here = "https://" + registry_->host();
  http::TestServer other([&](const http::TestServer::Request& request) {
    if (request.target.find("token") != std::string::npos)
      return http::TestServer::Reply(401, "",
                                     "WWW-Authenticate: Bearer realm=\"" + here + "/v2/\"\r\n");
    return http::TestServer::Reply(307, "", "Location: " + here + "/v2/\r\n");
  });
  for (const bool with_authority : {false, true}) {
    std::vector<Host> hosts = HostsOf({&other});
    if (with_authority) hosts[0].authorities = {folder_ / "ca.crt"};
    hosts[0].client_certificates = {{folder_ / "client.crt", folder_ / "client.key"}};
    hosts[0].skip_verify = true;
    for (const std::string repository : {"acme/token", "acme/redirect"}) {
      const auto ranges = BlobRanges::Open({hosts[0].name, repository, oci::Digest(), 10},
                                           ConnectHosts(hosts, RangeConnections()).value(),
                                           NoCredentials, {.max_rounds = 1})
                              .value();
      const ReadResult result = ReadRange(*ranges, 0, 1);
      EXPECT_FALSE(result.status.ok()) << repository;
      if (with_authority)  // but no certificate of ours is shown, which the registry asks for
        EXPECT_THAT(Message(result.status), Not(HasSubstr("SSL certificate problem")));
      else
        EXPECT_THAT(Message(result.status), HasSubstr("SSL certificate problem")) << repository;
    }
  }
}

TEST_F(RealTlsTest, CertificateAndKeyMayStandInOneFile) {
  Run("cat client.crt client.key > both.pem");
  WriteHosts("ca = \"../../ca.crt\"\nclient = \"../../both.pem\"\n");
  ExpectTruth(*OpenBlob());
}

TEST_F(RealTlsTest, VerificationCanBeSwitchedOff) {
  WriteHosts("skip_verify = true\nclient = [[\"../../client.crt\", \"../../client.key\"]]\n");
  ExpectTruth(*OpenBlob());
}

TEST_F(RealTlsTest, WithoutTheAuthorityTheRegistryIsRefused) {
  WriteHosts("client = [[\"../../client.crt\", \"../../client.key\"]]\n");
  const ReadResult result = ReadOne();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition) << result.status;
  EXPECT_THAT(Message(result.status), HasSubstr("certificate"));
}

TEST_F(RealTlsTest, WithoutAClientCertificateWeAreRefused) {
  WriteHosts("ca = \"../../ca.crt\"\n");
  const ReadResult result = ReadOne(std::chrono::seconds(2));  // it may pass: asked until then
  EXPECT_FALSE(result.status.ok());
  EXPECT_THAT(Message(result.status), HasSubstr(registry_->host()));
}

TEST_F(RealTlsTest, FilesThatAreNotThereAreNamed) {
  WriteHosts("ca = \"none.crt\"\n");
  const auto hosts = FindHosts(folder_ / "certs.d", registry_->host()).value();
  EXPECT_THAT(Message(ConnectHosts(hosts, {}).status()), HasSubstr("none.crt"));
  WriteHosts("ca = \"../../ca.crt\"\nclient = \"none.pem\"\n");
  const ReadResult result = ReadOne();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition) << result.status;
  EXPECT_THAT(Message(result.status), HasSubstr("none.pem"));
}

}  // namespace
}  // namespace kapsule::registry
