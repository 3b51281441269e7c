#include "core/model/gguf.h"

#include <gmock/gmock.h>

#include "core/model/test_models.h"

namespace kapsule::model {
namespace {
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

absl::StatusOr<GgufInfo> Read(const std::string& bytes) {
  return ReadGguf(MemoryReader(AsBytes(bytes)));
}
std::string ErrorOf(const std::string& bytes) { return Message(Read(bytes).status()); }

TEST(GgufTest, ReadsTheFacts) {
  const auto info =
      Read(SmallGguf()
               .Text("general.name", "Tiny")
               .Text("general.type", "model")
               .Text("tokenizer.chat_template", std::string(5000, 't'))
               .Raw("tokenizer.ggml.tokens", 9,
                    Le<uint32_t>(8) + Le<uint64_t>(2) + GgufString("a") + GgufString("b"))
               .Raw("tokenizer.ggml.scores", 9,
                    Le<uint32_t>(6) + Le<uint64_t>(3) + std::string(12, '\0'))
               .Raw("x.flag", 7, "\1")
               .Raw("x.wide", 12, std::string(8, '\0'))
               .Make());
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version, 3U);
  EXPECT_EQ(info->architecture, "llama");
  EXPECT_EQ(info->name, "Tiny");
  EXPECT_EQ(info->type, "model");
  EXPECT_EQ(info->file_type, "Q4_K_M");
  EXPECT_EQ(info->tensors, 1U);
  EXPECT_EQ(info->parameters, 32U);
  EXPECT_EQ(info->context_length, 128U);
  EXPECT_EQ(info->embedding_length, 8U);
  EXPECT_TRUE(info->has_chat_template);
  EXPECT_FALSE(info->split.has_value());
}

TEST(GgufTest, OnlyVersions2And3AreRead) {
  for (const uint32_t version : {0U, 1U, 2U, 3U, 4U, 9U, 0x02000000U, 0x03000000U}) {
    GgufMaker maker = SmallGguf();
    maker.version = version;
    const auto info = Read(maker.Make());
    EXPECT_EQ(info.ok(), version == 2 || version == 3) << version;
    if (!info.ok()) {
      EXPECT_EQ(info.status().code(), absl::StatusCode::kUnimplemented);
    }
  }
  EXPECT_EQ(ErrorOf("FUGG" + std::string(60, '\0')), "not a GGUF file");
}

TEST(GgufTest, EveryTruncationIsRefused) {
  const std::string whole = SmallGguf()
                                .Text("tokenizer.chat_template", "t")
                                .Raw("a", 9, Le<uint32_t>(8) + Le<uint64_t>(1) + GgufString("x"))
                                .Make();
  ASSERT_TRUE(Read(whole).ok());
  for (size_t n = 0; n < whole.size(); ++n)
    EXPECT_EQ(Read(whole.substr(0, n)).status().code(), absl::StatusCode::kInvalidArgument) << n;
}

TEST(GgufTest, AFlippedByteNeverCrashes) {
  const std::string whole = SmallGguf().Make();
  size_t refused = 0;
  for (size_t i = 0; i < SmallGguf().Header().size(); ++i)
    for (const char bit : {'\x01', '\x80', '\xFF'}) {
      std::string flipped = whole;
      flipped[i] = static_cast<char>(flipped[i] ^ bit);
      refused += !Read(flipped).ok();
    }
  EXPECT_GT(refused, 300U);
}

TEST(GgufTest, AbsurdCountsAreRefusedAtOnce) {
  GgufMaker maker = SmallGguf();
  maker.extra_tensors = uint64_t{1} << 60;
  EXPECT_THAT(ErrorOf(maker.Make()), HasSubstr("tensors, more than the limit"));
  maker.extra_tensors = kMaxGgufTensors - 1;  // the limit itself: then the file is too short
  EXPECT_THAT(ErrorOf(maker.Make()), Not(HasSubstr("tensors, more than")));
  maker = SmallGguf();
  maker.extra_keys = uint64_t{1} << 62;
  EXPECT_THAT(ErrorOf(maker.Make()), HasSubstr("metadata entries, more than the limit"));
  EXPECT_THAT(ErrorOf(SmallGguf().Raw("k", 8, Le(uint64_t{1} << 40)).Make()),
              HasSubstr("more than the limit of 16777216"));
  EXPECT_THAT(ErrorOf(SmallGguf().Raw("k", 8, Le(kMaxGgufStringBytes)).Make()),
              HasSubstr("cut short"));
  EXPECT_THAT(ErrorOf(SmallGguf().Raw(std::string(kMaxGgufKeyBytes + 1, 'k'), 7, "\1").Make()),
              HasSubstr("more than the limit of 65536"));
  EXPECT_TRUE(Read(SmallGguf().Raw(std::string(kMaxGgufKeyBytes, 'k'), 7, "\1").Make()).ok());
  for (const uint32_t type : {0U, 8U, 10U}) {
    EXPECT_THAT(ErrorOf(SmallGguf().Raw("k", 9, Le(type) + Le(kMaxGgufArray + 1)).Make()),
                HasSubstr("elements, more than the limit"));
    EXPECT_THAT(ErrorOf(SmallGguf().Raw("k", 9, Le(type) + Le(kMaxGgufArray)).Make()),
                AllOf(Not(HasSubstr("elements, more than")), HasSubstr("metadata entry 5")));
  }
  EXPECT_THAT(ErrorOf(SmallGguf().Raw("k", 9, Le<uint32_t>(9) + Le<uint64_t>(1)).Make()),
              HasSubstr("an array of type 9"));
}

TEST(GgufTest, BadMetadataIsRefused) {
  EXPECT_THAT(ErrorOf(GgufMaker().Make()), HasSubstr("general.architecture is missing"));
  EXPECT_THAT(ErrorOf(SmallGguf("../x").Make()), HasSubstr("not a word"));
  EXPECT_THAT(ErrorOf(SmallGguf().U32("general.file_type", 1).Make()), HasSubstr("stands twice"));
  EXPECT_THAT(ErrorOf(SmallGguf().Raw("k", 13, "").Make()), HasSubstr("type 13"));
  EXPECT_THAT(ErrorOf(SmallGguf().Raw("x.block_count", 5, Le<int32_t>(-1)).Make()),
              HasSubstr("is negative"));
  EXPECT_THAT(ErrorOf(SmallGguf().Raw("x.block_count", 6, Le(1.0F)).Make()),
              HasSubstr("not a whole number"));
  for (const uint32_t alignment : {0U, 3U, 48U, 8192U})
    EXPECT_THAT(ErrorOf(SmallGguf().U32("general.alignment", alignment).Make()),
                HasSubstr("general.alignment is"));
}

TEST(GgufTest, TensorsMustLieInTheFileApartAndAligned) {
  const auto error = [](const std::vector<uint64_t>& shape, uint32_t type, uint64_t offset) {
    return ErrorOf(SmallGguf().Tensor("b", shape, type, offset).Data(256).Make());
  };
  EXPECT_EQ(error({32}, 0, 128), "");
  EXPECT_THAT(error({33}, 0, 128), HasSubstr("not inside the file"));
  EXPECT_THAT(error({1}, 0, 256), HasSubstr("not inside the file"));
  EXPECT_THAT(error({1}, 0, ~uint64_t{31}), HasSubstr("not inside the file"));
  EXPECT_THAT(error({1}, 0, 96), HasSubstr("overlaps"));
  EXPECT_THAT(error({1}, 0, 129), HasSubstr("not aligned"));
  EXPECT_THAT(error({31}, 2, 128), HasSubstr("in blocks of 32"));
  EXPECT_THAT(error({1, 1, 1, 1, 1}, 0, 128), HasSubstr("5 dimensions"));
  EXPECT_THAT(error({uint64_t{1} << 32, uint64_t{1} << 32}, 0, 128), HasSubstr("does not fit"));
  EXPECT_THAT(error({uint64_t{1} << 62}, 0, 128), HasSubstr("does not fit"));
  EXPECT_EQ(error({32}, 999, 128), "");  // newer than this code
  EXPECT_THAT(error({32}, 999, 512), HasSubstr("not inside the file"));
  EXPECT_THAT(ErrorOf(SmallGguf().Tensor("token_embd.weight", {1}, 0, 128).Data(256).Make()),
              HasSubstr("stands twice"));
  EXPECT_THAT(ErrorOf(SmallGguf().Tensor(std::string(64, 'n'), {1}, 0, 128).Data(256).Make()),
              HasSubstr("more than the limit of 63"));
}

TEST(GgufTest, SplitSetsAreDescribed) {
  const auto first = Read(SplitGguf(0, 2)), second = Read(SplitGguf(1, 2));
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->split->number, 1U);
  EXPECT_EQ(second->split->count, 2U);
  EXPECT_EQ(second->architecture, "");
  EXPECT_THAT(ErrorOf(SplitGguf(2, 2)), HasSubstr("split.no is 2 of 2"));
}

TEST(GgufTest, FileTypesHaveOllamasNames) {
  EXPECT_EQ(GgufFileType(3), "Q4_1");
  EXPECT_EQ(GgufFileType(40), "Q1_0");
  EXPECT_EQ(GgufFileType(4), "unknown");
  EXPECT_EQ(GgufFileType(UINT64_MAX), "unknown");
}

}  // namespace
}  // namespace kapsule::model
