#include "core/model/plan.h"

#include <gmock/gmock.h>

#include <set>

#include "core/model/test_models.h"

namespace kapsule::model {
namespace {
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class PlanTest : public testing::Test {
 protected:
  absl::StatusOr<Plan> Make(const std::string& modelfile, const std::string& tag = "enc") {
    return MakePlan(folder_.Write("Modelfile", modelfile), folder_.path(),
                    {{"localhost:5000", "acme/tiny", tag, std::nullopt}});
  }
  std::map<std::string, std::string> Contents(const Plan& plan, size_t digests = 1) {
    std::map<std::string, std::string> contents;
    const auto files = plan.SmallFiles(std::vector(digests, digest_));
    EXPECT_TRUE(files.ok()) << files.status();
    for (const PlannedFile& file : *files) {
      EXPECT_TRUE(contents.emplace(file.path, file.content).second) << file.path;
      for (const std::string& link : file.links)
        EXPECT_TRUE(contents.emplace(link, file.content).second) << link;
    }
    return contents;
  }

  const TempFolder folder_;
  const oci::Digest digest_ = oci::Digest::Of(AsBytes("weights"));
};

std::string CommitOf(const Plan& plan) {
  const std::string& link = plan.weights[0].links.at(0);
  const size_t begin = link.find("/snapshots/") + 11;
  return link.substr(begin, 40);
}

TEST_F(PlanTest, AGgufStandsInEveryLayout) {
  folder_.Write("tiny-Q4_K_M.gguf", SmallGguf().Make());
  const auto plan = Make(
      "FROM tiny-Q4_K_M.gguf\nTEMPLATE {{ .Prompt }}\nSYSTEM Be brief.\nPARAMETER temperature 0.2\n"
      "LICENSE MIT\nLICENSE Be brief.\nMESSAGE user hi\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->warnings.empty()) << plan->warnings[0];
  ASSERT_EQ(plan->weights.size(), 1U);
  EXPECT_STREQ(plan->weights[0].kind(), "model");
  EXPECT_EQ(plan->weights[0].path, "models/tiny/model.gguf");
  const std::string commit = CommitOf(*plan);
  EXPECT_THAT(plan->weights[0].Links(digest_),
              ElementsAre("hf/hub/models--acme--tiny/snapshots/" + commit + "/tiny-Q4_K_M.gguf",
                          "ollama/models/blobs/sha256-" + digest_.hex()));
  EXPECT_THAT(plan->environment, ElementsAre("OLLAMA_MODELS=/ollama/models", "OLLAMA_NOPRUNE=1",
                                             "HF_HUB_CACHE=/hf/hub", "HF_HUB_OFFLINE=1"));
  ASSERT_EQ(plan->public_files.size(), 1U);
  EXPECT_EQ(plan->public_files[0].path, "kapsule/model.json");
  EXPECT_EQ(plan->public_files[0].content,
            "{\"schemaVersion\":1,\"name\":\"tiny\",\"format\":\"gguf\",\"architecture\":\"llama\","
            "\"parameters\":32,\"quantization\":\"Q4_K_M\",\"contextLength\":128}\n");

  auto contents = Contents(*plan);
  EXPECT_THAT(contents["models/tiny/Modelfile"], HasSubstr("FROM ./model.gguf\nTEMPLATE"));
  EXPECT_EQ(contents["models/tiny/LICENSE"], "MIT");
  EXPECT_EQ(contents["models/tiny/LICENSE.2"], "Be brief.");
  EXPECT_EQ(contents["hf/hub/models--acme--tiny/refs/main"], commit);
  EXPECT_EQ(contents["hf/hub/models--acme--tiny/refs/enc"], commit);
}

TEST_F(PlanTest, TheOllamaManifestNamesBlobsThatAreThere) {
  const std::string gguf = SmallGguf().Make();
  folder_.Write("tiny.gguf", gguf);
  const auto plan = Make(
      "FROM tiny.gguf\nTEMPLATE t\nSYSTEM s\nPARAMETER top_k 7\nLICENSE l\nLICENSE s\n"
      "MESSAGE user hi\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  auto contents = Contents(*plan);
  const auto manifest =
      ParseJson(contents["ollama/models/manifests/localhost:5000/acme/tiny/enc"], 1 << 20);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  std::vector<std::string> types;
  for (const Json& layer : (*manifest)["layers"]) {
    types.push_back(layer["mediaType"].get<std::string>().substr(sizeof(kOllamaTypePrefix) - 1));
    if (types.size() == 1) continue;  // the model itself
    std::string digest = layer["digest"];
    EXPECT_EQ(digest,
              oci::Digest::Of(AsBytes(contents["ollama/models/blobs/sha256-" + digest.substr(7)]))
                  .text());
  }
  EXPECT_THAT(types, ElementsAre("model", "template", "system", "license", "license", "params",
                                 "messages"));
  EXPECT_EQ((*manifest)["layers"][0]["digest"], digest_.text());
  EXPECT_EQ((*manifest)["layers"][0]["size"], gguf.size());
  const std::string config = (*manifest)["config"]["digest"].get<std::string>().substr(7);
  EXPECT_THAT(contents["ollama/models/blobs/sha256-" + config], HasSubstr(digest_.text()));
}

TEST_F(PlanTest, SizesDoNotDependOnTheDigests) {
  folder_.Write("m.gguf", SmallGguf().Make());
  folder_.Write("p.gguf", SmallGguf("clip").Make());
  const auto plan = Make("FROM m.gguf\nFROM p.gguf\nSYSTEM s\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto before = plan->SmallFiles({oci::Digest(), oci::Digest()});
  const auto after = plan->SmallFiles({digest_, oci::Digest::Of({})});
  ASSERT_EQ(before->size(), after->size());
  for (size_t i = 0; i < after->size(); ++i) {
    EXPECT_EQ((*before)[i].content.size(), (*after)[i].content.size());
    EXPECT_EQ((*before)[i].path.size(), (*after)[i].path.size());
    EXPECT_EQ((*before)[i].links, (*after)[i].links);
  }
  EXPECT_EQ(plan->SmallFiles({digest_}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PlanTest, ProjectorAndAdapterHaveTheirPlaces) {
  folder_.Write("m.gguf", SmallGguf().Make());
  folder_.Write("tiny-mmproj-f16.gguf", SmallGguf("clip").Make());
  folder_.Write("l.gguf", SmallGguf().Text("general.type", "adapter").Make());
  const auto plan = Make("FROM m.gguf\nFROM tiny-mmproj-f16.gguf\nADAPTER l.gguf\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::string snapshot = "hf/hub/models--acme--tiny/snapshots/" + CommitOf(*plan);
  EXPECT_EQ(plan->weights[1].path, "models/tiny/mmproj.gguf");
  EXPECT_STREQ(plan->weights[1].kind(), "projector");
  EXPECT_THAT(plan->weights[1].links, ElementsAre(snapshot + "/tiny-mmproj-f16.gguf"));
  EXPECT_EQ(plan->weights[2].path, "models/tiny/adapter/l.gguf");
  EXPECT_STREQ(plan->weights[2].kind(), "adapter");
  EXPECT_EQ(Contents(*plan, 3)["models/tiny/Modelfile"],
            "FROM ./model.gguf\nFROM ./mmproj.gguf\n\nADAPTER ./adapter/l.gguf\n");
}

TEST_F(PlanTest, SafetensorsKeepTheirNamesAndHaveNoOllamaLayout) {
  folder_.Write("hf/model.safetensors", SmallSafetensors());
  folder_.Write("hf/config.json", R"({"model_type":"llama"})");
  const auto plan = Make("FROM hf\nSYSTEM s\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->weights[0].path, "models/tiny/model.safetensors");
  EXPECT_FALSE(plan->ollama.has_value());
  EXPECT_THAT(plan->warnings, ElementsAre("no Ollama layout: Ollama reads GGUF files only"));
  EXPECT_THAT(plan->environment, ElementsAre("HF_HUB_CACHE=/hf/hub", "HF_HUB_OFFLINE=1"));
  auto contents = Contents(*plan);
  EXPECT_EQ(contents["models/tiny/Modelfile"], "FROM .\nSYSTEM s\n");
  EXPECT_EQ(contents["models/tiny/config.json"], R"({"model_type":"llama"})");
  EXPECT_EQ(contents["hf/hub/models--acme--tiny/snapshots/" + CommitOf(*plan) + "/config.json"],
            R"({"model_type":"llama"})");
  for (const auto& [path, content] : contents) EXPECT_THAT(path, Not(HasSubstr("ollama")));
  for (const std::string& path : plan->directories) EXPECT_THAT(path, Not(HasSubstr("ollama")));
}

TEST_F(PlanTest, SplitSetsKeepTheirNames) {
  for (uint16_t i = 0; i < 2; ++i)
    folder_.Write(fmt::format("m-{:05}-of-00002.gguf", i + 1), SplitGguf(i, 2));
  const auto plan = Make("FROM m-00001-of-00002.gguf\n");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->weights[1].path, "models/tiny/m-00002-of-00002.gguf");
  EXPECT_FALSE(plan->weights[1].ollama_blob);
  EXPECT_THAT(plan->warnings[0], HasSubstr("one model file, not 2"));
  EXPECT_EQ(plan->facts.parameters, 64U);
}

TEST_F(PlanTest, TheCommitIsKnownBeforeTheWeightsAndFollowsTheTexts) {
  folder_.Write("m.gguf", SmallGguf().Make());
  const auto a = Make("FROM m.gguf\nSYSTEM a\n"), again = Make("FROM m.gguf\nSYSTEM a\n"),
             b = Make("FROM m.gguf\nSYSTEM b\n"), other = Make("FROM m.gguf\nSYSTEM a\n", "x");
  EXPECT_EQ(CommitOf(*a), CommitOf(*again));
  EXPECT_NE(CommitOf(*a), CommitOf(*b));
  EXPECT_NE(CommitOf(*a), CommitOf(*other));
  // Layer 0 is never encrypted: it must not let a guess of SYSTEM be confirmed.
  EXPECT_EQ(a->directories, b->directories);
  EXPECT_EQ(a->public_files[0].content, b->public_files[0].content);
}

TEST_F(PlanTest, PathsAreUniqueAndParentsAreThere) {
  folder_.Write("m.gguf", SmallGguf().Make());
  const auto plan = Make("FROM m.gguf\n", "main");
  ASSERT_TRUE(plan.ok()) << plan.status();
  Contents(*plan);  // expects unique paths
  std::set<std::string> directories(plan->directories.begin(), plan->directories.end());
  for (const std::string& parent : ParentDirectories(plan->directories))
    EXPECT_THAT(directories, Contains(parent));
}

TEST_F(PlanTest, FilesOfOneNameAreRefused) {
  for (const char* folder : {"a", "b"})
    for (uint16_t i = 0; i < 2; ++i)
      folder_.Write(fmt::format("{}/m-{:05}-of-00002.gguf", folder, i + 1), SplitGguf(i, 2));
  EXPECT_EQ(Make("FROM a\nFROM b\n").status().code(), absl::StatusCode::kInvalidArgument);
  folder_.Write("x/Modelfile", SmallGguf().Make());
  folder_.Write("y/other.gguf", SmallGguf().Make());
  EXPECT_THAT(Message(Make("FROM x/Modelfile\nFROM y/other.gguf\n").status()),
              HasSubstr("two files would stand at models/tiny/Modelfile"));
}

TEST_F(PlanTest, TheModelfileIsFoundByName) {
  const PlanOptions options = {{"h", "a/b", "1", std::nullopt}};
  folder_.Write("m.gguf", SmallGguf().Make());
  EXPECT_THAT(Message(MakePlan("", folder_.path(), options).status()),
              HasSubstr("specified Modelfile wasn't found"));
  EXPECT_THAT(Message(MakePlan(folder_.path() / "none", "", options).status()),
              HasSubstr("specified Modelfile wasn't found"));
  folder_.Write("ModelFile", "FROM m.gguf\n");
  EXPECT_TRUE(MakePlan("", folder_.path(), options).ok());
  folder_.Write("Modelfile", "FROM\n");
  EXPECT_THAT(Message(MakePlan("", folder_.path(), options).status()),
              HasSubstr("Modelfile: (line 2): command must be"));
}

TEST_F(PlanTest, AChatTemplateWithoutTemplateIsMentioned) {
  folder_.Write("m.gguf", SmallGguf().Text("tokenizer.chat_template", "x").Make());
  EXPECT_THAT(Make("FROM m.gguf\n")->warnings, ElementsAre(HasSubstr("no TEMPLATE")));
  EXPECT_TRUE(Make("FROM m.gguf\nTEMPLATE x\n")->warnings.empty());
}

}  // namespace
}  // namespace kapsule::model
