#include "snapshotter/config.h"

#include <gmock/gmock.h>

#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

using testing::HasSubstr;

class ConfigTest : public testing::Test {
 protected:
  absl::StatusOr<Config> Load(const std::string& text) {
    Write(dir_ / "config.toml", text);
    return LoadConfig(dir_ / "config.toml");
  }
  std::string ErrorOf(const std::string& text) {
    const absl::StatusOr<Config> config = Load(text);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    return Message(config.status());
  }
  TempDir dir_;
};

TEST_F(ConfigTest, AnEmptyFileGivesTheDefaults) {
  const auto config = Load("");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->root, "/var/lib/kapsule");
  EXPECT_EQ(config->open_timeout_ms, 10'000);
  EXPECT_TRUE(CheckConfig(*config).ok());
}

TEST_F(ConfigTest, TheExampleIsTheDefaults) {
  const auto config = LoadConfig(PROJECT_SOURCE_DIR "/configs/kapsule-snapshotter.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(*config == Config());
}

TEST_F(ConfigTest, TheExampleNamesEveryKey) {
  const std::string text = Read(PROJECT_SOURCE_DIR "/configs/kapsule-snapshotter.toml");
  for (const std::string& key : ConfigKeys())
    EXPECT_TRUE(text.find("\n" + key + " = ") != std::string::npos ||
                text.find("\n#" + key + " = ") != std::string::npos)
        << key;
}

TEST_F(ConfigTest, ReadsPathsTextAndNumbers) {
  const auto config = Load("root = '/r'\nfuse_user = '61001'\nopen_timeout_ms = 5\n");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->root, "/r");
  EXPECT_EQ(config->fuse_user, "61001");
  EXPECT_EQ(config->open_timeout_ms, 5);
}

TEST_F(ConfigTest, AnErrorNamesFileLineAndKey) {
  EXPECT_THAT(ErrorOf("root = '/r'\nrooot = '/r'\n"), HasSubstr(":2: unknown key \"rooot\""));
  EXPECT_THAT(ErrorOf("\n\nroot = 7\n"), HasSubstr("config.toml:3: root must be a string"));
  EXPECT_THAT(ErrorOf("open_timeout_ms = '7'\n"),
              HasSubstr(":1: open_timeout_ms must be a number"));
  EXPECT_THAT(ErrorOf("open_timeout_ms = 1.5\n"), HasSubstr("must be a number"));
  EXPECT_THAT(ErrorOf("metrics_allow_remote = 1\n"), HasSubstr("must be true or false"));
  EXPECT_THAT(ErrorOf("\nopen_timeout_ms = 99999999999999999999\n"), HasSubstr("config.toml:2: "));
  EXPECT_THAT(ErrorOf("root = '/r'\nroot = \n"), HasSubstr("config.toml:2: "));
  EXPECT_THAT(ErrorOf("[root]\n"), HasSubstr("root must be a string"));
}

TEST_F(ConfigTest, EveryTruncationOfTheExampleIsAConfigOrAnError) {
  const std::string text = Read(PROJECT_SOURCE_DIR "/configs/kapsule-snapshotter.toml");
  for (size_t n = 0; n < text.size(); n += 7) {
    const auto config = Load(text.substr(0, n));
    if (!config.ok()) {
      EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

TEST_F(ConfigTest, AMissingFileIsNotFound) {
  EXPECT_EQ(LoadConfig(dir_ / "none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ConfigTest, RefusesARootThatNoOverlayMountCanName) {
  for (const char* root : {"relative", "/a:b", "/a,b", "/a\\b", "/a/../b", "/a//b", ""}) {
    Config config;
    config.root = root;
    EXPECT_EQ(CheckConfig(config).code(), absl::StatusCode::kInvalidArgument) << root;
  }
}

TEST_F(ConfigTest, KnowsTheWaysToMountAView) {
  for (const auto& [word, ok] :
       {std::pair("auto", true), {"file", true}, {"loop", true}, {"", false}, {"fuse", false}}) {
    Config config;
    config.view_mount = word;
    EXPECT_EQ(CheckConfig(config).ok(), ok) << word;
  }
}

TEST_F(ConfigTest, AMemoryLimitThatIsTooSmallIsSaidWithTheLeastThatWorks) {
  for (const auto& [key, least] : {std::pair("read_ahead_bytes", 8 << 20),
                                   {"chunk_cache_bytes", 4 << 20},
                                   {"index_cache_bytes", 1 << 20}}) {
    EXPECT_TRUE(CheckConfig(*Load(fmt::format("{} = {}", key, least))).ok()) << key;
    for (const int bytes : {least - 1, 0, -1})
      EXPECT_EQ(Message(CheckConfig(*Load(fmt::format("{} = {}", key, bytes)))),
                fmt::format("{} is {}: that memory limit is too small, it takes at least {}", key,
                            bytes, least));
    EXPECT_FALSE(CheckConfig(*Load(fmt::format("{} = {}", key, INT64_MAX))).ok()) << key;
  }
}

TEST_F(ConfigTest, BoundsThreadsAndGrace) {
  for (const char* good :
       {"workers = 0", "workers = 64", "io_threads = 1", "key_grace_ms = 0", "stuck_after_ms = 0",
        "stuck_after_ms = 1000", "abandon_after_ms = 0", "abandon_after_ms = 1000",
        "abandon_after_ms = 86400000", "fetch_grace_ms = 0", "fetch_grace_ms = 86400000"})
    EXPECT_TRUE(CheckConfig(*Load(good)).ok()) << good;
  for (const char* bad :
       {"workers = -1", "workers = 65", "io_threads = 0", "key_grace_ms = -1",
        "upgrade_timeout_ms = 0", "stuck_after_ms = 999", "abandon_after_ms = 999",
        "abandon_after_ms = -1", "abandon_after_ms = 86400001", "fetch_grace_ms = -1",
        "fetch_grace_ms = 86400001"})
    EXPECT_FALSE(CheckConfig(*Load(bad)).ok()) << bad;
}

TEST_F(ConfigTest, OtherMachinesSeeMetricsOnlyWhereThatIsSaid) {
  for (const char* good : {"", "127.0.0.1:9465", "[::1]:9465", "/run/kapsule/metrics.sock"})
    EXPECT_TRUE(CheckConfig(*Load(fmt::format("metrics_address = '{}'", good))).ok()) << good;
  const std::string remote = "metrics_address = '0.0.0.0:9465'\n";
  EXPECT_THAT(Message(CheckConfig(*Load(remote))), HasSubstr("metrics_allow_remote"));
  EXPECT_TRUE(CheckConfig(*Load(remote + "metrics_allow_remote = true\n")).ok());
  EXPECT_THAT(Message(CheckConfig(*Load("metrics_address = 'here'"))),
              HasSubstr("metrics_address: \"here\" is not like"));
}

TEST_F(ConfigTest, BoundsTimeoutsAndSocketNames) {
  Config config;
  for (const auto& [ms, ok] : {std::pair(0, false), {1, true}, {600'000, true}, {600'001, false}}) {
    config.open_timeout_ms = ms;
    EXPECT_EQ(CheckConfig(config).ok(), ok) << ms;
  }
  config = {};
  config.address = "/" + std::string(106, 'a');
  EXPECT_TRUE(CheckConfig(config).ok());
  config.address = "/" + std::string(107, 'a');
  EXPECT_FALSE(CheckConfig(config).ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
