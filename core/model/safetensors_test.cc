#include "core/model/safetensors.h"

#include <gmock/gmock.h>

#include "core/model/test_models.h"

namespace kapsule::model {
namespace {
using testing::HasSubstr;

absl::StatusOr<SafetensorsInfo> Read(const std::string& bytes) {
  return ReadSafetensors(MemoryReader(AsBytes(bytes)));
}
std::string ErrorOf(const std::string& json, size_t data) {
  return Message(Read(SafetensorsFile(json, data)).status());
}

TEST(SafetensorsTest, CountsElementsAndTypes) {
  const auto info = Read(SafetensorsFile(
      R"(  {"b":{"data_offsets":[12,20],"dtype":"F32","shape":[2]},)"
      R"("__metadata__":{"format":"pt"},"e":{"dtype":"F16","shape":[0,5],"data_offsets":[12,12]},)"
      R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
      R"("s":{"dtype":"F4","shape":[2],"data_offsets":[20,21]}})",
      21));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->tensors, 4U);
  EXPECT_EQ(info->parameters, 10U);
  EXPECT_EQ(info->dtype, "BF16");
}

TEST(SafetensorsTest, AnEmptyFileIsLegal) {
  const auto info = Read(SafetensorsFile("{}", 0));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->parameters, 0U);
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string whole = SmallSafetensors();
  ASSERT_TRUE(Read(whole).ok());
  for (size_t n = 0; n < whole.size(); ++n)
    EXPECT_EQ(Read(whole.substr(0, n)).status().code(), absl::StatusCode::kInvalidArgument) << n;
  EXPECT_THAT(Message(Read(whole + "x").status()), HasSubstr("1 bytes after the last tensor"));
}

TEST(SafetensorsTest, HeaderLengthsAreBounded) {
  EXPECT_THAT(Message(Read(Le<uint64_t>(200'000'000) + "{}").status()),
              HasSubstr("header too large"));
  EXPECT_THAT(Message(Read(Le<uint64_t>(kMaxSafetensorsHeaderBytes) + "{}").status()),
              HasSubstr("cut short"));
  EXPECT_THAT(Message(Read(Le(UINT64_MAX) + "{}").status()), HasSubstr("header too large"));
  EXPECT_THAT(Message(Read("1234567").status()), HasSubstr("7 bytes"));
}

TEST(SafetensorsTest, BadHeadersAreRefused) {
  const auto tensor = [](const std::string& members) { return "{\"a\":{" + members + "}}"; };
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2),
              HasSubstr("a hole"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                      R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                      3),
              HasSubstr("overlap"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                      R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                      1),
              HasSubstr("stands twice"));
  EXPECT_THAT(ErrorOf(tensor(R"("dtype":"U8","shape":[3],"data_offsets":[0,2])"), 2),
              HasSubstr("do not fit"));
  EXPECT_THAT(ErrorOf(tensor(R"("dtype":"U8","shape":[1],"data_offsets":[2,1])"), 2),
              HasSubstr("do not fit"));
  EXPECT_THAT(ErrorOf(tensor(R"("dtype":"F4","shape":[1],"data_offsets":[0,0])"), 0),
              HasSubstr("do not fit its 4 bits"));
  EXPECT_THAT(
      ErrorOf(tensor(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0),
      HasSubstr("does not fit 64 bits"));
  EXPECT_THAT(
      ErrorOf(tensor(R"("dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0])"), 0),
      HasSubstr("does not fit 64 bits"));
  EXPECT_THAT(ErrorOf(tensor(R"("dtype":"Q4","shape":[1],"data_offsets":[0,1])"), 1),
              HasSubstr("unknown dtype"));
  EXPECT_THAT(ErrorOf(tensor(R"("dtype":"U8","shape":[1])"), 0), HasSubstr("missing"));
  EXPECT_THAT(ErrorOf(tensor(R"("dtype":"U8","shape":[-1],"data_offsets":[0,1])"), 1),
              HasSubstr("negative"));
  EXPECT_THAT(ErrorOf(tensor(R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])"), 1),
              HasSubstr("fraction"));
  EXPECT_THAT(ErrorOf(tensor(R"("dtype":"U8","shape":[[1]],"data_offsets":[0,1])"), 1),
              HasSubstr("array"));
  EXPECT_THAT(ErrorOf(tensor(R"("dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1])"), 1),
              HasSubstr("stands twice"));
  EXPECT_THAT(ErrorOf(tensor(R"("extra":1)"), 0), HasSubstr("unknown member"));
  EXPECT_THAT(ErrorOf(R"({"__metadata__":{"a":1}})", 0), HasSubstr("a number where none belongs"));
  EXPECT_THAT(ErrorOf(R"({"__metadata__":[]})", 0), HasSubstr("an array where none belongs"));
  EXPECT_THAT(ErrorOf("[]", 0), HasSubstr("an array where none belongs"));
  EXPECT_THAT(ErrorOf("1", 0), HasSubstr("a number where none belongs"));
  EXPECT_THAT(ErrorOf("{} x", 0), HasSubstr("not JSON"));
  EXPECT_THAT(ErrorOf("", 0), HasSubstr("not JSON"));
  EXPECT_THAT(ErrorOf(tensor("\"dtype\":" + std::string(100'000, '[')), 0), HasSubstr("array"));
}

TEST(SafetensorsTest, AFlippedByteNeverCrashes) {
  const std::string whole = SmallSafetensors();
  size_t refused = 0;
  for (size_t i = 0; i < whole.size() - 12; ++i) {
    std::string flipped = whole;
    flipped[i] = static_cast<char>(flipped[i] ^ 0x11);
    refused += !Read(flipped).ok();
  }
  EXPECT_GT(refused, 40U);
}

}  // namespace
}  // namespace kapsule::model
