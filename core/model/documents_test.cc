#include "core/model/documents.h"

#include <gtest/gtest.h>

#include "core/model/go_json.h"

namespace kapsule::model {
namespace {

std::string Digest(const std::string& text) { return oci::Digest::Of(AsBytes(text)).text(); }
oci::Digest Parsed(const std::string& hex) { return *oci::Digest::Parse("sha256:" + hex); }

// Blobs that Ollama itself wrote for a model called SmolLM.
const char kModelHex[] = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const char kTemplateHex[] = "e3b2721cec511e3a627ae0993753abbf5c72cdf4cfcdbc8f5c33ce15c4c4e04b";
const char kSystemHex[] = "44b644fb83e06038bcefd063a01c1e6fe78c09850001bd72e608e80715e4d60c";
const char kParamsHex[] = "dc3a6b34d638bd29f70991c2606783f6e43e871c2d412671d950a200fa6e38e1";
const char kConfigHex[] = "9d092b84ce05cf88055c1cc0cf1f099c57a410d8df3e853ecb33cf4865f6aea0";

std::vector<OllamaBlob> SmolLayers() {
  return {{"application/vnd.ollama.image.model", Parsed(kModelHex), 98362432},
          {"application/vnd.ollama.image.template", Parsed(kTemplateHex), 102},
          {"application/vnd.ollama.image.system", Parsed(kSystemHex), 43},
          {"application/vnd.ollama.image.params", Parsed(kParamsHex), 84}};
}

TEST(DocumentsTest, ParamsHaveOllamasDigest) {
  const std::string params =
      ParamsJson({{"stop", std::vector<std::string>{"<|im_start|>", "<|im_end|>"}},
                  {"temperature", 0.0F},
                  {"seed", int64_t{1}}});
  EXPECT_EQ(Digest(params), std::string("sha256:") + kParamsHex) << params;
}

TEST(DocumentsTest, TheConfigHasOllamasDigest) {
  WeightFile weight;
  weight.gguf = GgufInfo();
  weight.gguf->architecture = "llama";
  weight.gguf->parameters = 134'515'008;
  weight.gguf->file_type = "Q4_1";
  const std::string config = OllamaConfigJson({weight}, SmolLayers());
  EXPECT_EQ(config.size(), 488U);
  EXPECT_EQ(Digest(config), std::string("sha256:") + kConfigHex) << config;
}

TEST(DocumentsTest, TheConfigOfAnotherModelHasOllamasDigestToo) {
  WeightFile weight;
  weight.gguf = GgufInfo();
  weight.gguf->architecture = "bert";
  weight.gguf->parameters = 22'570'000;
  weight.gguf->file_type = "F16";
  const std::string config = OllamaConfigJson(
      {weight},
      {{"application/vnd.ollama.image.model",
        Parsed("33043751371241f019135a1f04da5359d555058e9400b673dc12fda072304ef7"), 45949440}});
  EXPECT_EQ(Digest(config),
            "sha256:95a3ca19161282880c71e53076475f1b97bf017c9c0d238d6738f8ea84a785d4");
}

TEST(DocumentsTest, TheManifestIsOllamasWithoutTheSourcesPath) {
  EXPECT_EQ(
      OllamaManifestJson({kOllamaConfigType, Parsed(kConfigHex), 488}, SmolLayers()),
      "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\","
      "\"config\":{\"mediaType\":\"application/vnd.docker.container.image.v1+json\",\"digest\":"
      "\"sha256:9d092b84ce05cf88055c1cc0cf1f099c57a410d8df3e853ecb33cf4865f6aea0\",\"size\":488},"
      "\"layers\":[{\"mediaType\":\"application/vnd.ollama.image.model\",\"digest\":"
      "\"sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53\",\"size\":"
      "98362432},{\"mediaType\":\"application/vnd.ollama.image.template\",\"digest\":"
      "\"sha256:e3b2721cec511e3a627ae0993753abbf5c72cdf4cfcdbc8f5c33ce15c4c4e04b\",\"size\":102},"
      "{\"mediaType\":\"application/vnd.ollama.image.system\",\"digest\":"
      "\"sha256:44b644fb83e06038bcefd063a01c1e6fe78c09850001bd72e608e80715e4d60c\",\"size\":43},"
      "{\"mediaType\":\"application/vnd.ollama.image.params\",\"digest\":"
      "\"sha256:dc3a6b34d638bd29f70991c2606783f6e43e871c2d412671d950a200fa6e38e1\",\"size\":84}]}"
      "\n");
}

TEST(DocumentsTest, FamiliesNameTheProjectorButNotTheAdapter) {
  std::vector<WeightFile> weights(3);
  for (WeightFile& weight : weights) weight.gguf = GgufInfo();
  weights[0].gguf->architecture = "llama";
  weights[0].gguf->file_type = "F32";
  weights[1].gguf->architecture = "clip";
  weights[1].role = Role::kProjector;
  weights[2].gguf->architecture = "lora";
  weights[2].role = Role::kAdapter;
  const auto config = ParseJson(OllamaConfigJson(weights, {}), 4096);
  ASSERT_TRUE(config.ok());
  EXPECT_EQ((*config)["model_families"], Json({"llama", "clip"}));
  EXPECT_EQ((*config)["file_type"], "unknown");  // Ollama takes number 0 for "not said"
}

TEST(DocumentsTest, FloatsAreWrittenAsByGo) {
  const std::pair<float, const char*> cases[] = {
      {0.2F, "0.2"},
      {1.0F, "1"},
      {0.0F, "0"},
      {-0.0F, "-0"},
      {1.5e-6F, "0.0000015"},
      {9e-7F, "9e-7"},
      {1.25e-7F, "1.25e-7"},
      {1e20F, "100000000000000000000"},
      {1e21F, "1e+21"},
      {-1234.5F, "-1234.5"},
      {16777216.0F, "16777216"},
      {3.4028235e38F, "3.4028235e+38"},
  };
  for (const auto& [value, text] : cases) EXPECT_EQ(GoFloat(value), text);
}

TEST(DocumentsTest, JsonIsEscapedAsByGo) {
  EXPECT_EQ(GoText(Json("<a&b>\u2028\u2029\"\\\n\x01\u00E9")),
            "\"\\u003ca\\u0026b\\u003e\\u2028\\u2029\\\"\\\\\\n\\u0001\u00E9\"");
  EXPECT_EQ(MessagesJson({{"user", "a < b"}, {"assistant", "yes"}}),
            "[{\"role\":\"user\",\"content\":\"a \\u003c b\"},"
            "{\"role\":\"assistant\",\"content\":\"yes\"}]\n");
}

TEST(DocumentsTest, NumbersForPeopleAreOllamas) {
  const std::pair<uint64_t, const char*> cases[] = {
      {999, "999"},
      {1'000, "1K"},
      {19'488, "19K"},
      {999'999, "1000K"},
      {1'000'000, "1M"},
      {134'515'008, "134.52M"},
      {26'214'400, "26.21M"},
      {7'000'000'000, "7B"},
      {8'030'261'312, "8.0B"},
      {6'738'415'616, "6.7B"},
  };
  for (const auto& [number, text] : cases) EXPECT_EQ(HumanNumber(number), text);
}

TEST(DocumentsTest, FactsComeFromTheWeightsAndTheConfig) {
  Inputs inputs;
  inputs.weights.resize(2);
  for (WeightFile& weight : inputs.weights) weight.safetensors = SafetensorsInfo{1, 100, "BF16"};
  inputs.small.push_back({"config.json", Role::kModel,
                          R"({"model_type":"llama","max_position_embeddings":2048,"n_ctx":1,)"
                          R"("quantization_config":{"quant_method":"awq"}})"});
  EXPECT_EQ(FactsJson(FactsOf("tiny", inputs)),
            "{\"schemaVersion\":1,\"name\":\"tiny\",\"format\":\"safetensors\",\"architecture\":"
            "\"llama\",\"parameters\":200,\"quantization\":\"awq\",\"contextLength\":2048}\n");
  for (const char* odd : {"{", "[]", R"({"model_type":7,"n_ctx":-1,"quantization_config":[]})"}) {
    inputs.small[0].content = odd;
    EXPECT_EQ(
        FactsJson(FactsOf("tiny", inputs)),
        "{\"schemaVersion\":1,\"name\":\"tiny\",\"format\":\"safetensors\",\"parameters\":200,"
        "\"quantization\":\"BF16\"}\n");
  }
}

TEST(DocumentsTest, APackedModelfileNamesTheFilesBesideIt) {
  const auto modelfile = ParseModelfile(
      "# mine\nFROM \"/home/me/secret place/x.gguf\"\nSYSTEM \"\"\"FROM here\"\"\"\n"
      "ADAPTER /a\nFROM y\nADAPTER /b");
  ASSERT_TRUE(modelfile.ok());
  EXPECT_EQ(PackedModelfile(*modelfile, {"./model.gguf", "./mmproj.gguf"}, {"./adapter/b.gguf"}),
            "# mine\nFROM ./model.gguf\nFROM ./mmproj.gguf\nSYSTEM \"\"\"FROM here\"\"\"\n"
            "ADAPTER ./adapter/b.gguf\n\n");
}

}  // namespace
}  // namespace kapsule::model
