#include "core/registry/hosts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/base/file.h"

namespace kapsule::registry {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::string> Urls(const absl::StatusOr<std::vector<Host>>& hosts) {
  EXPECT_TRUE(hosts.ok()) << hosts.status();
  std::vector<std::string> urls;
  for (const Host& host : hosts.value()) urls.push_back(host.url);
  return urls;
}

std::vector<std::string> UrlsOf(const std::string& text, const std::string& host = "h.io") {
  return Urls(ParseHosts(text, "/c", host));
}

TEST(DefaultHostTest, AreAsContainerdReachesThem) {
  const std::pair<std::string, std::string> expected[] = {
      {"h.io", "https://h.io/v2"},
      {"h.io:5000", "https://h.io:5000/v2"},
      {"docker.io", "https://registry-1.docker.io/v2"},
      {"localhost:5000", "http://localhost:5000/v2"},
      {"127.0.0.1:5000", "http://127.0.0.1:5000/v2"},
      {"127.3.2.1:80", "http://127.3.2.1:80/v2"},
      {"[::1]:5000", "http://[::1]:5000/v2"},
      {"localhost", "https://localhost/v2"},
      {"localhost:443", "https://localhost:443/v2"},
      {"::1", "https://[::1]/v2"},
      {"localhost.evil.io:5000", "https://localhost.evil.io:5000/v2"},
      {"10.0.0.1:5000", "https://10.0.0.1:5000/v2"},
  };
  for (const auto& [host, url] : expected) {
    EXPECT_THAT(Urls(FindHosts("", host)), ElementsAre(url));
    const bool loopback = url.find("//l") != std::string::npos && !host.ends_with("evil.io:5000");
    if (loopback) {
      EXPECT_TRUE(FindHosts("", host)->at(0).skip_verify) << host;
    }
  }
  EXPECT_FALSE(FindHosts("", "h.io")->at(0).skip_verify);
}

TEST(DefaultHostTest, NamesThatAreNoHostsAreRefused) {
  for (const std::string host :
       {"", ".", "..", "../x", "a/b", "a b", "a?b", "a#b", "a@b", "a\nb", "h\xc3\xa4"})
    EXPECT_EQ(FindHosts("/c", host).status().code(), absl::StatusCode::kInvalidArgument) << host;
  EXPECT_FALSE(FindHosts("", std::string(300, 'a')).ok());
}

TEST(HostsFileTest, TheOrderIsThatOfTheFileAndTheServerComesLast) {
  EXPECT_THAT(UrlsOf(R"(
server = "https://h.io"
[host."https://z.example"]
[host."http://a.example:5000"]
  [host."http://a.example:5000".header]
    x = "y"
[host."m.example"]
)"),
              ElementsAre("https://z.example/v2", "http://a.example:5000/v2",
                          "https://m.example/v2", "https://h.io/v2"));
}

TEST(HostsFileTest, WithoutServerTheRegistryItselfComesLast) {
  EXPECT_THAT(UrlsOf("[host.\"https://m.example\"]\n"),
              ElementsAre("https://m.example/v2", "https://h.io/v2"));
  EXPECT_THAT(UrlsOf("", "docker.io"), ElementsAre("https://registry-1.docker.io/v2"));
}

TEST(HostsFileTest, PathsAreTakenAsContainerdTakesThem) {
  EXPECT_THAT(UrlsOf(R"(
server = "https://h.io/v2/"
[host."https://a.example/prefix"]
[host."https://b.example/prefix/v2"]
[host."https://c.example/x/../api/"]
override_path = true
[host."https://d.example"]
override_path = true
)"),
              ElementsAre("https://a.example/prefix/v2", "https://b.example/prefix/v2",
                          "https://c.example/api", "https://d.example", "https://h.io/v2"));
}

TEST(HostsFileTest, ReadsEveryKey) {
  const std::vector<Host> hosts = ParseHosts(R"(
server = "https://h.io"
skip_verify = true
ca = "/abs/root.crt"
[host."https://m.example:5000"]
capabilities = ["Pull", "resolve"]
ca = ["one.crt", "/two.crt"]
client = [["c.crt", "c.key"], ["d.crt", "d.key"]]
dial_timeout = "1.5s"
[host."https://m.example:5000".header]
x-one = "a"
x-many = ["b", "c"]
)",
                                             "/c/h.io", "h.io")
                                      .value();
  const Host& mirror = hosts.at(0);
  EXPECT_EQ(mirror.name, "m.example:5000");
  EXPECT_TRUE(mirror.pull && mirror.resolve && !mirror.push && !mirror.skip_verify);
  EXPECT_THAT(mirror.authorities, ElementsAre("/c/h.io/one.crt", "/two.crt"));
  ASSERT_EQ(mirror.client_certificates.size(), 2u);
  EXPECT_EQ(mirror.client_certificates[0].certificate, "/c/h.io/c.crt");
  EXPECT_EQ(mirror.client_certificates[0].key, "/c/h.io/c.key");
  EXPECT_EQ(mirror.connect_timeout.count(), 1500);
  EXPECT_EQ(mirror.headers.Find("x-one"), "a");
  EXPECT_THAT(mirror.headers.FindAll("x-many"), ElementsAre("b", "c"));
  EXPECT_TRUE(hosts.at(1).skip_verify && hosts.at(1).push);
  EXPECT_THAT(hosts.at(1).authorities, ElementsAre("/abs/root.crt"));
}

TEST(HostsFileTest, AClientIsOneFileOrMore) {
  const auto certificates = [](const std::string& value) {
    return ParseHosts("client = " + value, "/c", "h.io").value().at(0).client_certificates;
  };
  EXPECT_EQ(certificates("\"a.pem\"").at(0).certificate, "/c/a.pem");
  EXPECT_EQ(certificates("\"a.pem\"").at(0).key, "");
  EXPECT_EQ(certificates("[\"a.pem\", \"b.pem\"]").at(1).certificate, "/c/b.pem");
  EXPECT_EQ(certificates("[[\"a\", \"b\"], \"c\"]").at(1).certificate, "/c/c");
}

TEST(HostsFileTest, KeysOfOtherVersionsArePassedOver) {
  EXPECT_THAT(UrlsOf("future = 7\n[other]\nx = 1\n"), ElementsAre("https://h.io/v2"));
}

TEST(HostsFileTest, ErrorsNameLineAndKey) {
  const std::pair<std::string, std::string> wrong[] = {
      {"\nserver = 7", "line 2: server must be a string"},
      {"server = \"ftp://h.io\"", "server: "},
      {"server = \"https://u:p@h.io\"", "server: "},
      {"server = \"https://h.io/?x\"", "server: "},
      {"server = \"https://\"", "server: "},
      {"host = 7", "host must be a table"},
      {"host.x = 7", "host has \"x\" in it"},
      {"[host.\"https://h.io?x\"]", "host.\"https://h.io\": "},
      {"[host.\"https://u:geheim@h.io/x?geheim\"]", "host.\"https://…@h.io/x\": "},
      {"[host]\n\"u:geheim@h.io\" = 7", "host has \"…@h.io\" in it"},
      {"[host.\"\"]", "host has an entry without a url"},
      {"[host.x]\ncapabilities = [\"fly\"]", "line 2: host.\"x\".capabilities has \"fly\""},
      {"capabilities = \"pull\"", "capabilities must be a list"},
      {"ca = 7", "ca must be a string or a list"},
      {"ca = [7]", "ca must hold strings"},
      {"client = [[\"a\"]]", "client has a pair"},
      {"client = [[\"a\", 7]]", "client must hold strings"},
      {"client = [[\"a\", \"b\"], 7]", "client must hold files"},
      {"skip_verify = \"yes\"", "skip_verify must be true or false"},
      {"override_path = 1", "override_path must be true or false"},
      {"dial_timeout = \"soon\"", "dial_timeout must be a duration"},
      {"[host.x.header]\ny = 7", "host.\"x\".header.y must be a string"},
      {"[host.x.header]\ny = \"a\\r\\nb\"", "header.y cannot be sent"},
      {"[host.x.header]\n\"y z\" = \"a\"", "header.y z cannot be sent"},
      {"[host.x]\nheader = 1", "host.\"x\".header must be a table"},
      {"server = ", "line 1: "},
      {"a = 1\na = 2", "line 2: "},
      {"a = " + std::string(10'000, '['), "line 1: "},
  };
  for (const auto& [text, message] : wrong) {
    const auto hosts = ParseHosts(text, "/c", "h.io");
    EXPECT_EQ(hosts.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Message(hosts.status()), HasSubstr(message)) << text;
    EXPECT_THAT(Message(hosts.status()), Not(HasSubstr("geheim")));
  }
}

TEST(HostsFileTest, TheNumberOfHostsIsBounded) {
  std::string text;
  for (int i = 0; i < 33; ++i) text += fmt::format("[host.\"https://m{}\"]\n", i);
  EXPECT_EQ(ParseHosts(text, "/c", "h.io").status().code(), absl::StatusCode::kInvalidArgument);
}

class HostFoldersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/kapsule-hosts-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(root_).ok()); }

  void Write(const std::string& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }

  fs::path root_;
};

TEST_F(HostFoldersTest, TheMostSpecificFolderCounts) {
  Write("_default/hosts.toml", "[host.\"https://default\"]");
  EXPECT_THAT(Urls(FindHosts(root_, "h.io:5000")),
              ElementsAre("https://default/v2", "https://h.io:5000/v2"));
  Write("h.io:5000/hosts.toml", "[host.\"https://plain\"]");
  EXPECT_THAT(Urls(FindHosts(root_, "h.io:5000")),
              ElementsAre("https://plain/v2", "https://h.io:5000/v2"));
  Write("h.io_5000_/hosts.toml", "[host.\"https://port\"]");
  EXPECT_THAT(Urls(FindHosts(root_, "h.io:5000")),
              ElementsAre("https://port/v2", "https://h.io:5000/v2"));
  EXPECT_THAT(Urls(FindHosts(root_, "other.io")),
              ElementsAre("https://default/v2", "https://other.io/v2"));
  EXPECT_THAT(Urls(FindHosts(root_ / "none", "h.io")), ElementsAre("https://h.io/v2"));
}

TEST_F(HostFoldersTest, WithoutAFileDockersCertificatesCount) {
  Write("h.io/ca.crt", "");
  Write("h.io/b.cert", "");
  Write("h.io/b.key", "");
  Write("h.io/c.cert", "");
  Write("h.io/readme", "");
  const Host host = FindHosts(root_, "h.io").value().at(0);
  EXPECT_EQ(host.url, "https://h.io/v2");
  EXPECT_THAT(host.authorities, ElementsAre(root_ / "h.io/ca.crt"));
  ASSERT_EQ(host.client_certificates.size(), 2u);
  EXPECT_EQ(host.client_certificates[0].key, root_ / "h.io/b.key");
  EXPECT_EQ(host.client_certificates[1].key, "");
}

TEST_F(HostFoldersTest, ErrorsNameTheFile) {
  Write("h.io/hosts.toml", "ca = 7");
  EXPECT_THAT(Message(FindHosts(root_, "h.io").status()),
              AllOf(HasSubstr("h.io/hosts.toml: line 1: ca must be")));
  Write("big.io/hosts.toml", std::string(300'000, '#'));
  EXPECT_THAT(Message(FindHosts(root_, "big.io").status()), HasSubstr("big.io/hosts.toml"));
}

}  // namespace
}  // namespace kapsule::registry
