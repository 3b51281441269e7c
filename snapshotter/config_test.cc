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
  const Config defaults;
  EXPECT_EQ(config->root, defaults.root);
  EXPECT_EQ(config->address, defaults.address);
  EXPECT_EQ(config->snapshotter_name, defaults.snapshotter_name);
  EXPECT_EQ(config->containerd_address, defaults.containerd_address);
  EXPECT_EQ(config->content_root, defaults.content_root);
  EXPECT_EQ(config->keyprovider_socket, defaults.keyprovider_socket);
  EXPECT_EQ(config->fuse_program, defaults.fuse_program);
  EXPECT_EQ(config->fuse_user, defaults.fuse_user);
  EXPECT_EQ(config->view_mount, defaults.view_mount);
  EXPECT_EQ(config->open_timeout_ms, defaults.open_timeout_ms);
  EXPECT_EQ(config->lookup_timeout_ms, defaults.lookup_timeout_ms);
  EXPECT_EQ(config->key_grace_ms, defaults.key_grace_ms);
  EXPECT_EQ(config->upgrade_timeout_ms, defaults.upgrade_timeout_ms);
  EXPECT_EQ(config->stuck_after_ms, defaults.stuck_after_ms);
  EXPECT_EQ(config->workers, defaults.workers);
  EXPECT_EQ(config->io_threads, defaults.io_threads);
  EXPECT_EQ(config->read_ahead_bytes, defaults.read_ahead_bytes);
  EXPECT_EQ(config->chunk_cache_bytes, defaults.chunk_cache_bytes);
  EXPECT_EQ(config->index_cache_bytes, defaults.index_cache_bytes);
  EXPECT_EQ(config->metrics_address, defaults.metrics_address);
  EXPECT_EQ(config->metrics_allow_remote, defaults.metrics_allow_remote);
  EXPECT_EQ(config->log_level, defaults.log_level);
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
  for (const char* good : {"workers = 0", "workers = 64", "io_threads = 1", "key_grace_ms = 0",
                           "stuck_after_ms = 0", "stuck_after_ms = 1000"})
    EXPECT_TRUE(CheckConfig(*Load(good)).ok()) << good;
  for (const char* bad : {"workers = -1", "workers = 65", "io_threads = 0", "key_grace_ms = -1",
                          "upgrade_timeout_ms = 0", "stuck_after_ms = 999"})
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
