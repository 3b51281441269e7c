#include "core/registry/credential_chain.h"

#include <gmock/gmock.h>

#include "core/registry/credentials.h"
#include "core/registry/image_match.h"
#include "core/registry/pull_secrets.h"
#include "core/registry/test_credentials.h"

namespace kapsule::registry {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

using PullSecretsTest = CredentialFilesTest;

TEST_F(PullSecretsTest, AreFilesOrFoldersOfThem) {
  const fs::path file = Write("file", Auths("file.io", "a"));
  Write("one/.dockerconfigjson", Auths("one.io", "b"));
  Write("many/x/.dockerconfigjson", Auths("x.io", "c"));
  Write("many/y.json", Auths("y.io", "d"));
  Write("many/z/.dockercfg", R"({"https://z.io/v1/":{"auth":"ZTpnZWhlaW0="}})");
  const std::vector<fs::path> paths{file, folder_ / "one", folder_ / "many", folder_ / "none"};
  const std::pair<const char*, const char*> expected[] = {{"file.io", "a"}, {"one.io", "b"},
                                                          {"x.io", "c"},    {"y.io", "d"},
                                                          {"z.io", "e"},    {"other.io", "none"}};
  for (const auto& [host, user] : expected)
    EXPECT_EQ(User(FindPullSecret(paths, host, "acme/tiny")), user) << host;
}

TEST_F(PullSecretsTest, AMountedSecretIsReadThroughItsLinksOnce) {
  Write("s/..2024_01/.dockerconfigjson", Auths("h.io", "a"));
  fs::create_symlink("..2024_01", folder_ / "s/..data");
  fs::create_symlink("..data/.dockerconfigjson", folder_ / "s/.dockerconfigjson");
  EXPECT_EQ(User(FindPullSecret({folder_ / "s"}, "h.io", "x")), "a");
  Write("s/..2024_02/.dockerconfigjson", Auths("h.io", "b"));
  fs::remove(folder_ / "s/..data");
  fs::create_symlink("..2024_02", folder_ / "s/..data");
  EXPECT_EQ(User(FindPullSecret({folder_ / "s"}, "h.io", "x")), "b");
}

TEST_F(PullSecretsTest, TheMostSpecificKeyCounts) {
  const fs::path file = Write("f", R"({"auths":{
    "*.io": {"username":"any","password":"p"},
    "https://h.io": {"username":"host","password":"p"},
    "h.io/team": {"username":"team","password":"p"},
    "h.io/team/app": {"username":"app","password":"p"}}})");
  EXPECT_EQ(User(FindPullSecret({file}, "h.io", "other")), "host");
  EXPECT_EQ(User(FindPullSecret({file}, "h.io", "team/x")), "team");
  EXPECT_EQ(User(FindPullSecret({file}, "h.io", "team/app")), "app");
  EXPECT_EQ(User(FindPullSecret({file}, "i.io", "team/app")), "any");
  EXPECT_EQ(User(FindPullSecret({file}, "a.i.io", "team/app")), "none");
}

TEST_F(PullSecretsTest, DockerHubHasItsOldName) {
  const fs::path file = Write("f", Auths("https://index.docker.io/v1/", "hub"));
  EXPECT_EQ(User(FindPullSecret({file}, "docker.io", "library/x")), "hub");
}

TEST_F(PullSecretsTest, NoHelperIsRun) {
  Write("docker-credential-x", "#!/bin/sh\ntouch " + (folder_ / "ran").string(), 0755);
  const std::string path = getenv("PATH");
  setenv("PATH", (folder_.string() + ":" + path).c_str(), 1);
  const fs::path file = Write("f", R"({"credsStore":"x","credHelpers":{"h.io":"x"}})");
  EXPECT_EQ(User(FindPullSecret({file}, "h.io", "x")), "none");
  setenv("PATH", path.c_str(), 1);
  EXPECT_FALSE(fs::exists(folder_ / "ran"));
}

TEST_F(PullSecretsTest, ErrorsNameTheFileAndNoSecret) {
  for (const std::string text : {"geheim", R"({"auths":{"h.io":{"auth":"geheim"}}})"}) {
    const std::string error = User(FindPullSecret({Write("f.json", text)}, "h.io", "x"));
    EXPECT_THAT(error, HasSubstr("f.json"));
    EXPECT_THAT(error, Not(HasSubstr("geheim")));
  }
}

TEST(MatchesImageTest, ComparesParts) {
  EXPECT_TRUE(MatchesImage("h.io", "h.io/a/b"));
  EXPECT_TRUE(MatchesImage("*.dkr.ecr.*.amazonaws.com", "12.dkr.ecr.eu-west-1.amazonaws.com/a"));
  EXPECT_TRUE(MatchesImage("h.io:5000/a", "h.io:5000/a/b"));
  EXPECT_FALSE(MatchesImage("*.io", "a.h.io/b"));
  EXPECT_FALSE(MatchesImage("h.io:5000", "h.io/a"));
  EXPECT_FALSE(MatchesImage("h.io", "h.io:5000/a"));
  EXPECT_FALSE(MatchesImage("h.io/b", "h.io/a/b"));
  EXPECT_FALSE(MatchesImage("h.io", "h.io.evil.com/a"));
  EXPECT_FALSE(MatchesImage("", "h.io/a"));
}

class CredentialChainTest : public ProviderPluginsTest {
 protected:
  // The users, or errors, that come one after the other.
  static std::vector<std::string> Users(const CredentialChain& chain, const std::string& host,
                                        const std::string& repository) {
    std::vector<std::string> users;
    NextCredentials next = FindCredentials(chain, host, repository);
    for (std::string user = User(next()); user != "none" && users.size() < 20; user = User(next()))
      users.push_back(user);
    return users;
  }
};

TEST_F(CredentialChainTest, ItsOrderIsToldPluginsSecretsDockerAndNoneHidesAnother) {
  Plugin("p", "Image", kAuth);
  Plugin("q", "Image", R"({"h.io":{"username":"other","password":"geheim"}})");
  CredentialChain chain;
  chain.docker_configs = {Write("docker.json", Auths("h.io", "docker"))};
  EXPECT_THAT(Users(chain, "h.io", "a"), ElementsAre("docker"));
  chain.pull_secrets = {Write("s/1.json", Auths("h.io", "s1")).parent_path(),
                        Write("secret.json", Auths("h.io", "s3"))};
  Write("s/2.json", Auths("h.io", "s2"));
  chain.plugins = Load({"p", "q"});
  chain.told = {{"h.io/a", {"told", "geheim", ""}}};
  EXPECT_THAT(Users(chain, "h.io", "a"),
              ElementsAre("told", "AWS", "other", "s1", "s2", "s3", "docker"));
  EXPECT_THAT(Users(chain, "other.io", "a"), IsEmpty());
}

TEST_F(CredentialChainTest, NoPluginRunsBeforeItsTurn) {
  Plugin("p", "Image", kAuth);
  CredentialChain chain;
  chain.plugins = Load({"p"});
  chain.told = {{"h.io/a", {"told", "geheim", ""}}};
  NextCredentials next = FindCredentials(chain, "h.io", "a");
  EXPECT_EQ(User(next()), "told");
  EXPECT_EQ(Runs(), 0);
  EXPECT_EQ(User(next()), "AWS");
  EXPECT_EQ(Runs(), 1);
}

TEST_F(CredentialChainTest, WhatIsToldForARepositoryIsForNoOther) {
  CredentialChain chain;
  chain.told = {{"h.io", {"host", "geheim", ""}},
                {"h.io/team/app", {"app", "geheim", ""}},
                {"h.io/team", {"team", "geheim", ""}}};
  EXPECT_THAT(Users(chain, "h.io", "team/app"), ElementsAre("app", "host"));
  EXPECT_THAT(Users(chain, "h.io", "team"), ElementsAre("team", "host"));
  chain.told.erase(chain.told.begin());
  for (const std::string other : {"team/app/x", "team/application", "team/ap", "tea", "x/team/app"})
    EXPECT_THAT(Users(chain, "h.io", other), IsEmpty()) << other;
  EXPECT_THAT(Users(chain, "mirror.io", "team/app"), IsEmpty());
}

TEST_F(CredentialChainTest, ARepositoryMayHaveTheNameOfAnApiVersion) {
  for (const std::string name : {"v1", "v2"}) {
    CredentialChain chain;
    chain.told = {{"h.io/" + name, {"told", "geheim", ""}}};
    EXPECT_THAT(Users(chain, "h.io", name), ElementsAre("told"));
    EXPECT_THAT(Users(chain, "h.io", "other"), IsEmpty()) << name;
    EXPECT_THAT(Users(chain, "h.io", name + "/other"), IsEmpty());
  }
}

TEST_F(CredentialChainTest, WhatIsToldForDockerHubMayHaveAnyOfItsNames) {
  for (const std::string host : {"docker.io", "index.docker.io", "registry-1.docker.io"}) {
    CredentialChain chain;
    chain.told = {{host + "/library/x", {"told", "geheim", ""}}, {host, {"hub", "geheim", ""}}};
    EXPECT_THAT(Users(chain, "docker.io", "library/x"), ElementsAre("told", "hub")) << host;
    EXPECT_THAT(Users(chain, "docker.io", "a"), ElementsAre("hub")) << host;
    EXPECT_THAT(Users(chain, "h.io", "library/x"), IsEmpty());
  }
}

TEST_F(CredentialChainTest, ADockerFileMayNameTheApiVersionOfAHost) {
  const fs::path file = Write("config.json", Auths("https://h.io/v2/", "host"));
  EXPECT_EQ(User(FindDockerCredentials({file}, "h.io", "a")), "host");
}

TEST_F(CredentialChainTest, AFailureHidesNothing) {
  CredentialChain chain;
  chain.pull_secrets = {Write("broken.json", "{"), Write("good.json", Auths("h.io", "secret"))};
  chain.docker_configs = {Write("docker.json", Auths("h.io", "docker"))};
  EXPECT_THAT(Users(chain, "h.io", "a"), ElementsAre(HasSubstr("broken.json"), "secret", "docker"));
}

TEST_F(CredentialChainTest, ADockerFileMayHoldSeveralPartsOfARegistry) {
  const fs::path file = Write("config.json", R"({"auths":{
    "h.io/team/app": {"username":"app","password":"p"},
    "h.io/team": {"username":"team","password":"p"},
    "other.io/team": {"username":"other","password":"p"}}})");
  EXPECT_EQ(User(FindDockerCredentials({file}, "h.io", "team/app")), "app");
  EXPECT_EQ(User(FindDockerCredentials({file}, "h.io", "team/app/x")), "app");
  EXPECT_EQ(User(FindDockerCredentials({file}, "h.io", "team/apple")), "team");
  EXPECT_EQ(User(FindDockerCredentials({file}, "h.io", "teams")), "none");
  EXPECT_EQ(User(FindDockerCredentials({file}, "h.io")), "none");
}

TEST_F(CredentialChainTest, DockersFilesMayBeOfOneHost) {
  Write("d/h.io:5000/config.json", Auths("h.io:5000", "own"));
  Write("d/config.json", Auths("i.io", "common"));
  EXPECT_EQ(User(FindDockerCredentials({folder_ / "d"}, "h.io:5000")), "own");
  EXPECT_EQ(User(FindDockerCredentials({folder_ / "d"}, "i.io")), "common");
  EXPECT_EQ(User(FindDockerCredentials({folder_ / "d"}, "../d")), "none");
}

}  // namespace
}  // namespace kapsule::registry
