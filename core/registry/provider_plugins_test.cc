#include "core/registry/provider_plugins.h"

#include <gmock/gmock.h>

#include <thread>

#include "core/registry/durations.h"
#include "core/registry/test_credentials.h"
#include "core/registry/yaml.h"

namespace kapsule::registry {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(ProviderPluginsTest, APluginIsAskedAsTheKubeletAsks) {
  PluginScript("p", "echo \"$1|$2|$#|$KAPSULE_X\" > " + (folder_ / "call").string() + "\ncat > " +
                        (folder_ / "request").string() + "\necho '{}'");
  (void)Load({"p"})->Find("h.io/acme/tiny");
  EXPECT_EQ(ReadFile(folder_ / "call", 1000).value(), "one|two words|2|y z\n");
  EXPECT_EQ(ReadFile(folder_ / "request", 1000).value(),
            R"({"kind":"CredentialProviderRequest","apiVersion":)"
            R"("credentialprovider.kubelet.k8s.io/v1","image":"h.io/acme/tiny"})");
}

TEST_F(ProviderPluginsTest, WhatItAnswersIsKeptAsItSays) {
  const std::pair<const char*, std::vector<long>> cases[] = {
      {"Image", {1, 1, 2, 3}}, {"Registry", {1, 1, 1, 2}}, {"Global", {1, 1, 1, 1}}};
  for (const auto& [key, runs] : cases) {
    fs::remove(folder_ / "runs");
    Plugin("p", key, kAuth);
    const auto plugins = Load({"p"});
    std::vector<long> seen;
    for (const char* image : {"h.io/a", "h.io/a", "h.io/b", "i.io/a"}) {
      EXPECT_EQ(User(plugins->Find(image)), *image == 'h' ? "AWS" : "none");
      seen.push_back(Runs());
    }
    EXPECT_EQ(seen, runs) << key;
  }
}

TEST_F(ProviderPluginsTest, AnAnswerMayNotBeKept) {
  Plugin("p", R"(Global","cacheDuration":"0s)", kAuth);
  const auto plugins = Load({"p"});
  for (int i = 0; i < 2; ++i) EXPECT_EQ(User(plugins->Find("h.io/a")), "AWS");
  EXPECT_EQ(Runs(), 2);
  Plugin("q", R"(Global","cacheDuration":"1ms)", kAuth);
  const auto others = Load({"q"});
  EXPECT_EQ(User(others->Find("h.io/a")), "AWS");
  std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(User(others->Find("h.io/a")), "AWS");
  EXPECT_EQ(Runs(), 4);
}

TEST_F(ProviderPluginsTest, ThreadsThatAskTogetherRunItOnce) {
  Plugin("p", "Image", kAuth);
  const auto plugins = Load({"p"});
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] { EXPECT_EQ(User(plugins->Find("h.io/a")), "AWS"); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Runs(), 1);
}

TEST_F(ProviderPluginsTest, TheNextOneIsAskedAfterAFailure) {
  PluginScript("bad", "echo geheim; exit 1");
  Plugin("good", "Image", kAuth);
  EXPECT_EQ(User(Load({"bad", "good"})->Find("h.io/a")), "AWS");
  EXPECT_EQ(User(Load({"bad", "good"})->Find("h.com/a")), "none");
  EXPECT_EQ(User(Load({"bad"})->Find("h.io/a")), "credential provider bad: it failed");
}

TEST_F(ProviderPluginsTest, EveryBrokenAnswerIsAnErrorWithoutASecret) {
  const std::string head = R"({"kind":"CredentialProviderResponse","apiVersion":")";
  for (const std::string& text :
       {std::string(), std::string("geheim"), std::string("{}"),
        head + "v2\",\"cacheKeyType\":\"Image\"}", head + kVersion + "\"}",
        head + kVersion + "\",\"cacheKeyType\":\"geheim\"}",
        head + kVersion + R"(","cacheKeyType":"Image","cacheDuration":"geheim"})",
        head + kVersion + R"(","cacheKeyType":"Image","auth":["geheim"]})",
        head + kVersion + R"(","cacheKeyType":"Image","auth":{"h.io":{"password":"geheim"}}})"}) {
    PluginScript("p", "cat <<'E'\n" + text + "\nE\n");
    const auto found = Load({"p"})->Find("h.io/a");
    EXPECT_EQ(found.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(User(found), Not(HasSubstr("geheim")));
  }
}

TEST_F(ProviderPluginsTest, PluginsAreBounded) {
  PluginScript("endless", "exec yes");
  EXPECT_EQ(Load({"endless"})->Find("h.io/a").status().code(), absl::StatusCode::kInvalidArgument);
  const auto start = std::chrono::steady_clock::now();
  for (const std::string script : {"exec sleep 100", "exec >&-; exec sleep 100"}) {
    PluginScript("sleeps", script);
    EXPECT_EQ(Load({"sleeps"}, milliseconds(200))->Find("h.io/a").status().code(),
              absl::StatusCode::kDeadlineExceeded);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  EXPECT_EQ(Load({"missing"})->Find("h.io/a").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ProviderPluginsTest, StoppingEndsThem) {
  PluginScript("sleeps", "exec sleep 100");
  Load({"sleeps"});
  const auto plugins = ProviderPlugins::Load({folder_ / "config.yaml", folder_ / "bin",
                                              milliseconds(60'000), [] { return true; }})
                           .value();
  EXPECT_EQ(plugins->Find("h.io/a").status().code(), absl::StatusCode::kCancelled);
}

TEST(ProviderConfigTest, ReadsWhatCloudsInstall) {
  const auto providers =
      ParseProviderConfig(ReadFile(TEST_SOURCE_DIR "/corpus/provider/config.yaml", 10'000).value());
  ASSERT_TRUE(providers.ok()) << providers.status();
  const ProviderConfig& provider = providers->at(0);
  EXPECT_EQ(provider.name, "ecr-credential-provider");
  EXPECT_EQ(provider.default_cache_duration, std::chrono::hours(12));
  EXPECT_THAT(provider.match_images, ElementsAre("*.dkr.ecr.*.amazonaws.com"));
  EXPECT_THAT(provider.arguments, ElementsAre("get-credentials"));
  EXPECT_THAT(provider.environment, ElementsAre(std::pair("AWS_PROFILE", "example")));
  EXPECT_FALSE(provider.needs_service_account);
  const auto json =
      ParseProviderConfig(ReadFile(TEST_SOURCE_DIR "/corpus/provider/config.json", 10'000).value());
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_TRUE(json->at(0).needs_service_account);
}

TEST(ProviderConfigTest, ErrorsNameProviderAndKey) {
  const std::string head =
      "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n";
  const std::string good = "  apiVersion: credentialprovider.kubelet.k8s.io/v1\n";
  const std::pair<std::string, std::string> wrong[] = {
      {"kind: Pod\napiVersion: v1", "not a CredentialProviderConfig"},
      {head + "- name: ../x\n", "\"../x\": no name of a program"},
      {head + "- name: p\n  apiVersion: v1\n", "provider \"p\": apiVersion"},
      {head + "- name: p\n" + good, "provider \"p\": matchImages"},
      {head + "- name: p\n" + good + "  matchImages: a\n", "provider \"p\": matchImages"},
      {head + "- name: p\n" + good + "  matchImages: [a]\n  defaultCacheDuration: soon\n",
       "provider \"p\": defaultCacheDuration"},
      {head + "- name: p\n" + good + "  matchImages: [a]\n  env: [{name: 'a=b'}]\n",
       "provider \"p\": env"},
      {head + "- name: p\n" + good + "  matchImages: [a]\n- name: p\n", "\"p\" twice"},
      {head + "- [", "line "},
  };
  for (const auto& [text, message] : wrong) {
    const auto providers = ParseProviderConfig(text);
    EXPECT_EQ(providers.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Message(providers.status()), HasSubstr(message)) << text;
  }
}

TEST(YamlTest, IsBounded) {
  std::string bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n";
  for (char c = 'b'; c < 'i'; ++c)
    bomb += fmt::format("{0}: &{0} [*{1},*{1},*{1},*{1},*{1},*{1},*{1},*{1},*{1},*{1}]\n", c,
                        static_cast<char>(c - 1));
  for (const std::string& text :
       {bomb, std::string("a: &a [*a]"), std::string(100'000, '['), std::string("{a: 1, a: 2}"),
        std::string("{[a]: 1}"), std::string("a: *b"), std::string(1'000'001, '#')})
    EXPECT_EQ(ParseYaml(text, 1'000'000).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(YamlTest, ReadsScalarsAsText) {
  EXPECT_EQ(DumpJson(ParseYaml("{a: 1, b: [true, 'x', null, ~]}", 100).value()),
            R"({"a":"1","b":["true","x",null,null]})");
}

TEST(DurationTest, ReadsWhatGoWrites) {
  EXPECT_EQ(ParseGoDuration("1h30m0.5s").value(), milliseconds(5'400'500));
  EXPECT_EQ(ParseGoDuration("12h0m0s").value(), std::chrono::hours(12));
  EXPECT_EQ(ParseGoDuration("250ms").value(), milliseconds(250));
  EXPECT_EQ(ParseGoDuration("3000us").value(), milliseconds(3));
  EXPECT_EQ(ParseGoDuration("0").value(), milliseconds(0));
  for (const char* text :
       {"", "1", "h", "-1s", "1h 2m", "1x", "1..2s", "1e3s", "99999999999h", "nan", "infs"})
    EXPECT_FALSE(ParseGoDuration(text).ok()) << text;
}

}  // namespace
}  // namespace kapsule::registry
