#include "core/image/layer_descriptor.h"

#include <gtest/gtest.h>

#include "core/crypt/keywrap_jwe.h"

namespace kapsule::image {
namespace {

WrittenLayer Layer(bool encrypted) {
  WrittenLayer layer;
  layer.digest = oci::Digest::Of(AsBytes("stored"));
  layer.diff_id = oci::Digest::Of(AsBytes("plain"));
  layer.size = 131072;
  layer.index = {.offset = 130816, .length = 256, .root = oci::Digest::Of(AsBytes("header"))};
  if (encrypted) {
    layer.secret.emplace();
    layer.secret->key = *crypt::LayerKey::Generate();
    layer.secret->hmac.fill(std::byte{7});
  }
  return layer;
}

TEST(DescribeLayerTest, APlainLayerHasItsNamesIndexAndLabel) {
  const auto descriptor = DescribeLayer(Layer(false), {"model", "a/model.gguf"}, {});
  ASSERT_TRUE(descriptor.ok()) << descriptor.status();
  EXPECT_EQ(descriptor->media_type, "application/vnd.oci.image.layer.v1.tar");
  const auto& annotations = descriptor->annotations;
  EXPECT_EQ(annotations.size(), 5u);
  EXPECT_EQ(annotations.at("io.kapsule.layer.mediatype"), "application/vnd.kapsule.image.model");
  EXPECT_EQ(annotations.at("org.opencontainers.image.title"), "a/model.gguf");
  EXPECT_EQ(annotations.at("org.cncf.model.filepath"), "a/model.gguf");
  EXPECT_EQ(*oci::IndexRef::FromJson(annotations.at("io.kapsule.index")), Layer(false).index);
  const auto label =
      oci::LayerLabel::FromJson(annotations.at("containerd.io/snapshot/kapsule.layer"));
  ASSERT_TRUE(label.ok());
  EXPECT_EQ(label->digest, descriptor->digest);
  EXPECT_EQ(label->size, 131072u);
  EXPECT_EQ(label->diff_id, oci::Digest::Of(AsBytes("plain")));
  EXPECT_EQ(label->kind, "model");
}

TEST(DescribeLayerTest, EachRecipientOpensAnEncryptedLayer) {
  const std::vector<crypt::Key> keys = {*crypt::GenerateKey("rsa-2048"),
                                        *crypt::GenerateKey("ec-p256"),
                                        *crypt::GenerateKey("ec-p521")};
  WrittenLayer layer = Layer(true);
  const crypt::LayerKey key = layer.secret->key.Clone();
  const auto descriptor = DescribeLayer(std::move(layer), {.kind = "model", .file = ""}, keys);
  ASSERT_TRUE(descriptor.ok()) << descriptor.status();
  EXPECT_EQ(descriptor->media_type, "application/vnd.oci.image.layer.v1.tar+encrypted");
  for (const crypt::Key& one : keys) {
    const auto options = crypt::UnwrapLayer(descriptor->annotations, {&one, 1});
    ASSERT_TRUE(options.ok()) << options.status();
    EXPECT_TRUE(options->key.key.Equals(key.key.bytes()));
    EXPECT_TRUE(options->key.nonce.Equals(key.nonce.bytes()));
    EXPECT_EQ(options->digest, oci::Digest::Of(AsBytes("plain")).text());
    EXPECT_EQ(options->index, Layer(false).index);
  }
  const crypt::Key stranger = *crypt::GenerateKey("ec-p384");
  EXPECT_EQ(crypt::UnwrapLayer(descriptor->annotations, {&stranger, 1}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(DescribeLayerTest, ALabelThatContainerdWouldRefuseIsAnError) {
  const size_t fixed = std::string_view(oci::kLayerLabel).size() +
                       oci::LayerLabel{{}, 131072, {}, ""}.ToJson()->size();
  const size_t longest = oci::kMaxLabelBytes - fixed;
  EXPECT_TRUE(DescribeLayer(Layer(false), {std::string(longest, 'k'), ""}, {}).ok());
  EXPECT_EQ(DescribeLayer(Layer(false), {std::string(longest + 1, 'k'), ""}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(DescribeLayerTest, AnEncryptedLayerWithoutRecipientsIsAnError) {
  EXPECT_FALSE(DescribeLayer(Layer(true), {"model", ""}, {}).ok());
}

}  // namespace
}  // namespace kapsule::image
