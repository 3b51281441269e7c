#include "core/model/inputs.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "core/model/test_models.h"

namespace kapsule::model {
namespace {
using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

constexpr char kIndex[] = R"({"weight_map":{"a":"model-00001-of-00002.safetensors",)"
                          R"("b":"model-00002-of-00002.safetensors"}})";

class InputsTest : public testing::Test {
 protected:
  absl::StatusOr<Inputs> Resolve(const std::string& text, const fs::path& context = {}) {
    auto modelfile = ParseModelfile(text);
    if (!modelfile.ok()) return modelfile.status();
    return ResolveInputs(*modelfile, folder_.path(), context);
  }
  std::string ErrorOf(const std::string& text) { return Message(Resolve(text).status()); }
  static std::vector<std::string> Names(const std::vector<WeightFile>& weights) {
    std::vector<std::string> names;
    for (const WeightFile& weight : weights)
      names.push_back(std::string(RoleName(weight.role)) + " " + weight.name);
    return names;
  }
  std::vector<std::string> NamesOf(const std::string& text) {
    const auto inputs = Resolve(text);
    EXPECT_TRUE(inputs.ok()) << inputs.status();
    return inputs.ok() ? Names(inputs->weights) : std::vector<std::string>();
  }

  const TempFolder folder_;
};

TEST_F(InputsTest, AFileIsTakenWithItsFacts) {
  const std::string gguf = SmallGguf().Make();
  const fs::path path = folder_.Write("sub/tiny-Q4_K_M.gguf", gguf);
  for (const std::string& value : {std::string("sub/tiny-Q4_K_M.gguf"), path.string()}) {
    const auto inputs = Resolve("FROM " + value);
    ASSERT_TRUE(inputs.ok()) << inputs.status();
    ASSERT_EQ(inputs->weights.size(), 1U);
    EXPECT_EQ(inputs->weights[0].name, "tiny-Q4_K_M.gguf");
    EXPECT_EQ(inputs->weights[0].source, fs::canonical(path));
    EXPECT_EQ(inputs->weights[0].size, gguf.size());
    EXPECT_EQ(inputs->weights[0].gguf->architecture, "llama");
    EXPECT_TRUE(inputs->small.empty());
  }
}

TEST_F(InputsTest, RelativePathsStartAtTheModelfileThenAtTheContext) {
  const TempFolder context;
  context.Write("m.gguf", SmallGguf("context").Make());
  auto inputs = Resolve("FROM m.gguf", context.path());
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_EQ(inputs->weights[0].gguf->architecture, "context");
  folder_.Write("m.gguf", SmallGguf("beside").Make());
  inputs = Resolve("FROM m.gguf", context.path());
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_EQ(inputs->weights[0].gguf->architecture, "beside");
}

TEST_F(InputsTest, ATildeIsAHomeDirectory) {
  folder_.Write("m.gguf", SmallGguf().Make());
  ASSERT_EQ(setenv("HOME", folder_.path().c_str(), 1), 0);
  EXPECT_THAT(NamesOf("FROM ~/m.gguf"), ElementsAre("model m.gguf"));
  EXPECT_THAT(ErrorOf("FROM ~no-such-user-here/m.gguf"), HasSubstr("failed to find user"));
}

TEST_F(InputsTest, RolesComeFromTheFiles) {
  folder_.Write("m.gguf", SmallGguf().Make());
  folder_.Write("p.gguf", SmallGguf("clip").Make());
  folder_.Write("mm.gguf", SmallGguf().Text("general.type", "mmproj").Make());
  folder_.Write("l.gguf", SmallGguf().Text("general.type", "adapter").Make());
  folder_.Write("old.gguf", SmallGguf().Make());
  EXPECT_THAT(
      NamesOf("FROM p.gguf\nFROM mm.gguf\nFROM m.gguf\nADAPTER l.gguf"),
      ElementsAre("model m.gguf", "projector p.gguf", "projector mm.gguf", "adapter l.gguf"));
  EXPECT_THAT(NamesOf("FROM m.gguf\nFROM ./m.gguf\nADAPTER old.gguf\n"),
              ElementsAre("model m.gguf", "adapter old.gguf"));
  EXPECT_THAT(ErrorOf("FROM m.gguf\nADAPTER mm.gguf"), HasSubstr("names a mmproj, not an adapter"));
  EXPECT_THAT(ErrorOf("FROM p.gguf"), HasSubstr("FROM names no model"));
  EXPECT_THAT(ErrorOf("FROM m.gguf\nFROM l.gguf\nADAPTER old.gguf"),
              HasSubstr("only one adapter is currently supported"));
}

TEST_F(InputsTest, OnlyTheLastAdapterCountsButAllMustExist) {
  folder_.Write("m.gguf", SmallGguf().Make());
  folder_.Write("a.gguf", SmallGguf().Make());
  folder_.Write("b.gguf", SmallGguf().Make());
  const auto inputs = Resolve("FROM m.gguf\nADAPTER a.gguf\nADAPTER b.gguf");
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_THAT(Names(inputs->weights), ElementsAre("model m.gguf", "adapter b.gguf"));
  EXPECT_THAT(inputs->warnings, ElementsAre("(line 2): ADAPTER is replaced by a later one"));
  EXPECT_EQ(ErrorOf("FROM m.gguf\nADAPTER none\nADAPTER b.gguf"),
            "(line 2): ADAPTER none: no such file or directory");
}

TEST_F(InputsTest, WhatIsNotThereIsAPathOrAModelsName) {
  EXPECT_EQ(Resolve("FROM llama3.2:1b").status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(ErrorOf("\nFROM llama3.2:1b"),
            "(line 2): FROM llama3.2:1b names a model of a registry; give a file or directory");
  for (const char* path : {"./m", "/nowhere/m", "m.gguf", "m.safetensors"}) {
    EXPECT_EQ(Resolve(std::string("FROM ") + path).status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(ErrorOf(std::string("FROM ") + path),
              fmt::format("(line 1): FROM {}: no such file or directory", path));
  }
}

TEST_F(InputsTest, ADirectoryGivesSafetensorsWithTheirSmallFiles) {
  for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                           "2_Dense/model.safetensors"})
    folder_.Write(name, SmallSafetensors());
  folder_.Write("other.gguf", SmallGguf().Make());
  folder_.Write("pytorch_model.bin", "PK\3\4");
  for (const char* name :
       {"config.json", "tokenizer.model", "merges.txt", "chat_template.jinja",
        "1_Pooling/config.json", ".cache/x.json", "modeling.py", "deep/er/x.json"})
    folder_.Write(name, "{}");
  folder_.Write("model.safetensors.index.json", kIndex);
  const auto inputs = Resolve("FROM .");
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_THAT(Names(inputs->weights), ElementsAre("model model-00001-of-00002.safetensors",
                                                  "model model-00002-of-00002.safetensors",
                                                  "model 2_Dense/model.safetensors"));
  std::vector<std::string> small;
  for (const SmallInput& input : inputs->small) small.push_back(input.name);
  EXPECT_THAT(small, ElementsAre("1_Pooling/config.json", "chat_template.jinja", "config.json",
                                 "merges.txt", "model.safetensors.index.json", "tokenizer.model"));
  ASSERT_EQ(inputs->warnings.size(), 1U);
  EXPECT_THAT(inputs->warnings[0],
              HasSubstr("3 files are left out: modeling.py, other.gguf, pytorch_model.bin"));
  EXPECT_TRUE(Resolve("FROM ").ok());  // an empty value is the Modelfile's own folder
}

TEST_F(InputsTest, AMissingShardIsFound) {
  folder_.Write("model-00001-of-00002.safetensors", SmallSafetensors());
  folder_.Write("model.safetensors.index.json", kIndex);
  EXPECT_EQ(
      ErrorOf("FROM ."),
      "model.safetensors.index.json: names \"model-00002-of-00002.safetensors\", which is missing");
  folder_.Write("model.safetensors.index.json", "{}");
  EXPECT_THAT(ErrorOf("FROM ."), HasSubstr("\"weight_map\" is missing"));
}

TEST_F(InputsTest, DirectoriesAreReadInOllamasOrder) {
  EXPECT_THAT(ErrorOf("FROM ."), HasSubstr("no Modelfile or safetensors files found"));
  folder_.Write("x.bin", SmallGguf().Make());
  EXPECT_THAT(NamesOf("FROM ."), ElementsAre("model x.bin"));
  folder_.Write("y.gguf", SmallGguf().Make());
  EXPECT_THAT(NamesOf("FROM ."), ElementsAre("model y.gguf"));
  folder_.Write("consolidated.00.pth", "PK\3\4");
  EXPECT_EQ(Resolve("FROM .").status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(ErrorOf("FROM ."), HasSubstr("pickle weights are not supported yet"));
  folder_.Write("pytorch_model.bin", "PK\3\4");
  EXPECT_THAT(ErrorOf("FROM ."), HasSubstr("pytorch_model.bin: pickle weights"));
  folder_.Write("consolidated.safetensors", SmallSafetensors());
  EXPECT_THAT(NamesOf("FROM ."), ElementsAre("model consolidated.safetensors"));
}

TEST_F(InputsTest, AnAdapterDirectoryIsALora) {
  folder_.Write("m.gguf", SmallGguf().Make());
  folder_.Write("lora/adapter_model.safetensors", SmallSafetensors());
  folder_.Write("lora/adapter_config.json", "{}");
  const auto inputs = Resolve("FROM m.gguf\nADAPTER lora");
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_THAT(Names(inputs->weights),
              ElementsAre("model m.gguf", "adapter adapter_model.safetensors"));
  ASSERT_EQ(inputs->small.size(), 1U);
  EXPECT_EQ(inputs->small[0].role, Role::kAdapter);
}

TEST_F(InputsTest, LinksMayNotLeaveTheDirectory) {
  const TempFolder outside;
  const fs::path secret = outside.Write("secret.json", "{}");
  folder_.Write("model.safetensors", SmallSafetensors());
  folder_.Write("real/config.json", "{}");
  fs::create_symlink("real/config.json", folder_.path() / "config.json");
  EXPECT_TRUE(Resolve("FROM .").ok());
  fs::create_symlink(secret, folder_.path() / "tokenizer.json");
  EXPECT_THAT(ErrorOf("FROM ."), HasSubstr("insecure path: ../"));
  fs::remove(folder_.path() / "tokenizer.json");
  fs::create_symlink("/nowhere", folder_.path() / "tokenizer.json");
  EXPECT_EQ(Resolve("FROM .").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(InputsTest, OnlyRegularFilesAreOpened) {
  ASSERT_EQ(mkfifo((folder_.path() / "pipe.gguf").c_str(), 0600), 0);
  EXPECT_THAT(ErrorOf("FROM ./pipe.gguf"), HasSubstr("not a regular file"));
  EXPECT_THAT(ErrorOf("FROM ."), HasSubstr("not a regular file"));
  EXPECT_THAT(ErrorOf("FROM /dev/null"), HasSubstr("not a regular file"));
}

TEST_F(InputsTest, OtherFilesAreRefusedWithTheReason) {
  folder_.Write("a.txt", "hello");
  folder_.Write("b.bin", "\x80\x02");
  folder_.Write("c.safetensors", "version https://git-lfs.github.com/spec/v1\n");
  folder_.Write("d.gguf", "GGUF");
  folder_.Write("e", "");
  EXPECT_EQ(ErrorOf("FROM ./a.txt"), "(line 1): FROM: a.txt: neither GGUF nor safetensors");
  EXPECT_THAT(ErrorOf("FROM ./b.bin"), HasSubstr("pickle weights are not supported yet"));
  EXPECT_THAT(ErrorOf("FROM ./c.safetensors"), HasSubstr("git lfs pull"));
  EXPECT_THAT(ErrorOf("FROM ./d.gguf"), HasSubstr("cut short at byte 4"));
  EXPECT_THAT(ErrorOf("FROM ./e"), HasSubstr("neither GGUF nor safetensors"));
  folder_.Write("m.gguf", SmallGguf().Make());
  folder_.Write("s.safetensors", SmallSafetensors());
  EXPECT_THAT(ErrorOf("FROM m.gguf\nFROM s.safetensors"), HasSubstr("mixed model file types"));
}

TEST_F(InputsTest, SplitSetsAreTakenWhole) {
  for (uint16_t i = 0; i < 3; ++i)
    folder_.Write(fmt::format("m-{:05}-of-00003.gguf", i + 1), SplitGguf(i, 3));
  for (const char* from : {"FROM m-00001-of-00003.gguf", "FROM m-00002-of-00003.gguf", "FROM .",
                           "FROM m-00003-of-00003.gguf\nFROM m-00001-of-00003.gguf"})
    EXPECT_THAT(NamesOf(from),
                ElementsAre("model m-00001-of-00003.gguf", "model m-00002-of-00003.gguf",
                            "model m-00003-of-00003.gguf"));
  fs::rename(folder_.path() / "m-00002-of-00003.gguf", folder_.path() / "away");
  EXPECT_THAT(ErrorOf("FROM m-00001-of-00003.gguf"), HasSubstr("part 2 of 3"));
  EXPECT_THAT(ErrorOf("FROM ."), HasSubstr("m: 2 of 3 parts"));
}

TEST_F(InputsTest, SplitNamesAndContentsMustAgree) {
  folder_.Write("alone.gguf", SplitGguf(0, 2));
  EXPECT_THAT(ErrorOf("FROM alone.gguf"), HasSubstr("its name is not that of part 1 of 2"));
  folder_.Write("m-00001-of-00002.gguf", SplitGguf(1, 2));
  folder_.Write("m-00002-of-00002.gguf", SplitGguf(0, 2));
  EXPECT_THAT(ErrorOf("FROM m-00001-of-00002.gguf"), HasSubstr("is not that of part 2 of 2"));
  folder_.Write("n-00001-of-00001.gguf", SmallGguf().Make());
  EXPECT_THAT(NamesOf("FROM n-00001-of-00001.gguf"), ElementsAre("model n-00001-of-00001.gguf"));
  folder_.Write("k-00001-of-99999.gguf", SmallGguf().Make());
  EXPECT_THAT(ErrorOf("FROM k-00001-of-99999.gguf"), HasSubstr("more than the limit of 1000"));
}

}  // namespace
}  // namespace kapsule::model
