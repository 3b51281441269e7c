// scripts/make-tiny-gguf makes what this module reads.
#include <gmock/gmock.h>

#include <cstdlib>

#include "core/model/gguf.h"
#include "core/model/test_models.h"

namespace kapsule::model {
namespace {

std::string MakeTiny(const TempFolder& folder, const std::string& options) {
  const std::string out = (folder.path() / "out.gguf").string();
  const std::string command =
      std::string(PROJECT_SOURCE_DIR "/scripts/make-tiny-gguf ") + out + " " + options;
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  auto bytes = ReadFile(out, 8 << 20);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *bytes : "";
}

TEST(MakeTinyGgufTest, TheModelIsReadable) {
  const TempFolder folder;
  const std::string bytes = MakeTiny(folder, "");
  const auto info = ReadGguf(MemoryReader(AsBytes(bytes)));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->architecture, "llama");
  EXPECT_EQ(info->parameters, 19'488U);
  EXPECT_EQ(info->tensors, 11U);
  EXPECT_EQ(info->context_length, 128U);
  EXPECT_EQ(info->embedding_length, 32U);
  EXPECT_EQ(info->file_type, "F16");
  EXPECT_EQ(MakeTiny(folder, ""), bytes);
  EXPECT_NE(MakeTiny(folder, "--seed 2"), bytes);
}

TEST(MakeTinyGgufTest, PaddingAndMarkerAreThere) {
  const TempFolder folder;
  const std::string bytes = MakeTiny(folder, "--pad-mib 2 --marker find-me");
  const auto info = ReadGguf(MemoryReader(AsBytes(bytes)));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->tensors, 12U);
  EXPECT_GT(bytes.size(), 2U << 20);
  size_t found = 0;
  for (size_t at = 0; (at = bytes.find("find-me", at)) != bytes.npos; ++at) ++found;
  EXPECT_EQ(found, 3U);
}

}  // namespace
}  // namespace kapsule::model
