#include "core/oci/model_layer.h"

#include <gtest/gtest.h>

namespace kapsule::oci {
namespace {

const Digest kBlob = Digest::Of(AsBytes("blob"));
const Digest kTar = Digest::Of(AsBytes("tar"));

Descriptor Layer(const char* media_type, const std::string& label) {
  return {media_type, kBlob, 4, {{kLayerLabel, label}}, "", ""};
}

Descriptor Layer(const char* media_type, const LayerLabel& label) {
  return Layer(media_type, label.ToJson().value());
}

TEST(FindLayerLabelTest, FindsEncryptedLayersAndPlainOnesThatAreTheirTar) {
  const auto encrypted = FindLayerLabel(Layer(kLayerTarEncryptedType, {kBlob, 4, kTar, "model"}));
  ASSERT_TRUE(encrypted.ok()) << encrypted.status();
  EXPECT_EQ(encrypted->diff_id, kTar);
  EXPECT_TRUE(FindLayerLabel(Layer(kLayerTarType, {kBlob, 4, kBlob, "model"})).ok());
}

TEST(FindLayerLabelTest, RefusesAPlainLayerThatStandsForAnotherTar) {
  const auto found = FindLayerLabel(Layer(kLayerTarType, {kBlob, 4, kTar, "model"}));
  EXPECT_TRUE(absl::IsInvalidArgument(found.status())) << found.status();
}

TEST(FindLayerLabelTest, RefusesALabelOfAnotherBlob) {
  for (const LayerLabel& label :
       {LayerLabel{kTar, 4, kTar, "model"}, LayerLabel{kBlob, 5, kTar, "model"}})
    EXPECT_TRUE(
        absl::IsInvalidArgument(FindLayerLabel(Layer(kLayerTarEncryptedType, label)).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(FindLayerLabel(Layer(kLayerTarEncryptedType, "{}")).status()));
}

TEST(FindLayerLabelTest, OtherLayersHaveNone) {
  EXPECT_TRUE(absl::IsNotFound(FindLayerLabel({kLayerTarType, kBlob, 4, {}, "", ""}).status()));
}

}  // namespace
}  // namespace kapsule::oci
