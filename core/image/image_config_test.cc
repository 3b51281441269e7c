#include "core/image/image_config.h"

#include <gtest/gtest.h>

namespace kapsule::image {
namespace {

ConfigParts Parts() {
  return {.diff_ids = {oci::Digest::Of(AsBytes("a")), oci::Digest::Of(AsBytes("b"))},
          .history = {"made a", "made b"},
          .environment = {"OLLAMA_MODELS=/ollama/models", "HF_HUB_OFFLINE=1"},
          .labels = {{"io.kapsule.facts.name", "tiny"}},
          .created = 86400};
}

BaseImage Base(const std::string& config) {
  BaseImage base;
  base.config = *ParseJson(config, 1 << 20);
  base.layers.resize(2);
  base.diff_ids = {oci::Digest::Of(AsBytes("x")), oci::Digest::Of(AsBytes("y"))};
  return base;
}

Json Made(const BaseImage* base) { return *ParseJson(MakeConfig(Parts(), base), 1 << 20); }

TEST(MakeConfigTest, WithoutABaseItIsALinuxImageWithOurVariables) {
  EXPECT_EQ(
      MakeConfig(Parts(), nullptr),
      R"({"architecture":"amd64","os":"linux","created":"1970-01-02T00:00:00Z",)"
      R"("config":{"Env":["OLLAMA_MODELS=/ollama/models","HF_HUB_OFFLINE=1"],)"
      R"("Labels":{"io.kapsule.facts.name":"tiny"}},"rootfs":{"type":"layers","diff_ids":[")" +
          Parts().diff_ids[0].text() + R"(",")" + Parts().diff_ids[1].text() +
          R"("]},"history":[{"created":"1970-01-02T00:00:00Z","created_by":"made a"},)"
          R"({"created":"1970-01-02T00:00:00Z","created_by":"made b"}]})");
}

TEST(MakeConfigTest, TheBasesLayersFollowTheModels) {
  const BaseImage base = Base(R"({"rootfs":{"type":"layers","diff_ids":[]}})");
  const Json made = Made(&base);
  const auto diff_ids = oci::ParseDiffIds(DumpJson(made));
  ASSERT_TRUE(diff_ids.ok());
  EXPECT_EQ(*diff_ids, (std::vector{Parts().diff_ids[0], Parts().diff_ids[1], base.diff_ids[0],
                                    base.diff_ids[1]}));
  EXPECT_EQ(made["history"].size(), 4u);
}

TEST(MakeConfigTest, WhatTheBaseSaysStays) {
  const BaseImage base = Base(
      R"({"architecture":"arm64","os":"linux","variant":"v8","future":[1],"config":{"User":"7",)"
      R"("Entrypoint":["/serve"],"WorkingDir":"/w","Env":["PATH=/bin","OLLAMA_MODELS=/old","X"],)"
      R"("Labels":{"a":"b","io.kapsule.facts.name":"old"}},)"
      R"("history":[{"created_by":"one"},{"empty_layer":true},{"created_by":"two"}]})");
  const Json made = Made(&base);
  EXPECT_EQ(made["architecture"], "arm64");
  EXPECT_EQ(made["variant"], "v8");
  EXPECT_EQ(made["future"], Json::array({1}));
  EXPECT_EQ(made["config"]["User"], "7");
  EXPECT_EQ(made["config"]["Entrypoint"], Json::array({"/serve"}));
  EXPECT_EQ(made["config"]["WorkingDir"], "/w");
  EXPECT_EQ(made["config"]["Env"],
            Json::array({"PATH=/bin", "X", "OLLAMA_MODELS=/ollama/models", "HF_HUB_OFFLINE=1"}));
  EXPECT_EQ(made["config"]["Labels"], (Json{{"a", "b"}, {"io.kapsule.facts.name", "tiny"}}));
  EXPECT_EQ(made["history"].size(), 5u);
  EXPECT_EQ(made["history"][4]["created_by"], "two");
}

TEST(MakeConfigTest, OddMembersOfABaseAreReplacedOrCounted) {
  for (const char* config :
       {R"({"config":null,"history":null})", R"({"config":7,"history":"x"})",
        R"({"config":{"Env":7,"Labels":[]},"history":[1,2]})",
        R"({"config":{"Env":[1,null],"Labels":null},"history":[{"empty_layer":3}]})"}) {
    const BaseImage base = Base(config);
    const Json made = Made(&base);
    EXPECT_EQ(made["history"].size(), 4u) << config;
    EXPECT_EQ(made["config"]["Labels"], (Json{{"io.kapsule.facts.name", "tiny"}})) << config;
  }
}

}  // namespace
}  // namespace kapsule::image
