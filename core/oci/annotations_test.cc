#include "core/oci/annotations.h"

#include <gtest/gtest.h>

namespace kapsule::oci {
namespace {

const Digest kRoot = Digest::Of(AsBytes("header"));

TEST(IndexRefTest, WritesTheDocumentedText) {
  const IndexRef ref{1, 65536, 256, kRoot};
  EXPECT_EQ(ref.ToJson(),
            R"({"version":1,"offset":65536,"length":256,"root":")" + kRoot.text() + "\"}");
  EXPECT_EQ(IndexRef::FromJson(ref.ToJson()).value(), ref);
}

TEST(IndexRefTest, EveryTruncationIsRefused) {
  const std::string text = IndexRef{1, 65536, 256, kRoot}.ToJson();
  for (size_t length = 0; length < text.size(); ++length)
    EXPECT_FALSE(IndexRef::FromJson(text.substr(0, length)).ok()) << length;
}

TEST(IndexRefTest, AnotherVersionIsUnimplemented) {
  EXPECT_EQ(IndexRef::FromJson(IndexRef{2, 0, 256, kRoot}.ToJson()).status().code(),
            absl::StatusCode::kUnimplemented);
}

TEST(IndexRefTest, RefusesNumbersThatCannotBeOffsets) {
  const std::string tail = R"(,"root":")" + kRoot.text() + "\"}";
  EXPECT_FALSE(IndexRef::FromJson(R"({"version":1,"offset":-1,"length":256)" + tail).ok());
  EXPECT_FALSE(IndexRef::FromJson(R"({"version":1,"offset":1.5,"length":256)" + tail).ok());
  EXPECT_FALSE(IndexRef::FromJson(R"({"version":1,"offset":"1","length":256)" + tail).ok());
  EXPECT_FALSE(
      IndexRef::FromJson(R"({"version":1,"offset":18446744073709551615,"length":256)" + tail).ok());
  EXPECT_FALSE(IndexRef::FromJson(R"({"version":1,"offset":1,"length":2,"root":"x"})").ok());
  EXPECT_FALSE(IndexRef::FromJson("[]").ok());
}

LayerLabel Label(std::string kind) {
  return {Digest::Of(AsBytes("blob")), 12345, Digest::Of(AsBytes("tar")), std::move(kind)};
}

TEST(LayerLabelTest, TextAndBackIsTheSame) {
  const LayerLabel label = Label("model");
  const LayerLabel again = LayerLabel::FromJson(label.ToJson().value()).value();
  EXPECT_EQ(again.digest, label.digest);
  EXPECT_EQ(again.size, label.size);
  EXPECT_EQ(again.diff_id, label.diff_id);
  EXPECT_EQ(again.kind, "model");
}

TEST(LayerLabelTest, KeyAndValueFitContainerdsLimitExactly) {
  const size_t base = std::string_view(kLayerLabel).size() + Label("").ToJson()->size();
  EXPECT_TRUE(Label(std::string(kMaxLabelBytes - base, 'k')).ToJson().ok());
  EXPECT_FALSE(Label(std::string(kMaxLabelBytes - base + 1, 'k')).ToJson().ok());
}

TEST(LayerLabelTest, EveryTruncationIsRefused) {
  const std::string text = Label("model").ToJson().value();
  for (size_t length = 0; length < text.size(); ++length)
    EXPECT_FALSE(LayerLabel::FromJson(text.substr(0, length)).ok()) << length;
}

}  // namespace
}  // namespace kapsule::oci
