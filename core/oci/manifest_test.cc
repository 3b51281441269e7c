#include "core/oci/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kapsule::oci {
namespace {

using ::testing::HasSubstr;

Descriptor SomeDescriptor(const std::string& type, std::string_view content) {
  return {type, Digest::Of(AsBytes(content)), content.size(), {}, "", ""};
}

Manifest SomeManifest(size_t layers) {
  Manifest manifest;
  manifest.media_type = kManifestType;
  manifest.artifact_type = kModelArtifactType;
  manifest.config = SomeDescriptor(kConfigType, "{}");
  manifest.annotations["org.opencontainers.image.title"] = "täst \"quoted\"";
  for (size_t i = 0; i < layers; ++i) {
    manifest.layers.push_back(SomeDescriptor(kLayerTarEncryptedType, std::to_string(i)));
    manifest.layers.back().annotations[kKindAnnotation] = "application/vnd.kapsule.image.model";
  }
  return manifest;
}

TEST(ManifestTest, WritesOciJsonInTheUsualOrder) {
  Manifest manifest;
  manifest.config = SomeDescriptor(kConfigType, "{}");
  EXPECT_EQ(SerializeManifest(manifest),
            R"({"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",)"
            R"("config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":")" +
                manifest.config.digest.text() + R"(","size":2},"layers":[]})");
}

TEST(ManifestTest, WrittenAndReadIsTheSame) {
  const std::string bytes = SerializeManifest(SomeManifest(3));
  const Manifest again = ParseManifest(bytes).value();
  EXPECT_EQ(SerializeManifest(again), bytes);
  ASSERT_EQ(again.layers.size(), 3u);
  EXPECT_EQ(again.artifact_type, kModelArtifactType);
  EXPECT_EQ(again.layers[2].digest, Digest::Of(AsBytes("2")));
  EXPECT_EQ(again.layers[2].annotations.at(kKindAnnotation), "application/vnd.kapsule.image.model");
}

TEST(ManifestTest, EveryTruncationIsRefused) {
  const std::string bytes = SerializeManifest(SomeManifest(1));
  for (size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(ParseManifest(bytes.substr(0, length)).ok()) << length;
}

TEST(ManifestTest, HoldsAtMost1024Layers) {
  EXPECT_TRUE(ParseManifest(SerializeManifest(SomeManifest(1024))).ok());
  EXPECT_THAT(Message(ParseManifest(SerializeManifest(SomeManifest(1025))).status()),
              HasSubstr("1025 layers"));
}

TEST(ManifestTest, HoldsAtMostFourMebibytes) {
  std::string bytes = SerializeManifest(SomeManifest(1));
  bytes.resize(kMaxManifestBytes, ' ');
  EXPECT_TRUE(ParseManifest(bytes).ok());
  EXPECT_FALSE(ParseManifest(bytes + " ").ok());
}

TEST(ManifestTest, ErrorsNameTheMember) {
  Json json = ParseJson(SerializeManifest(SomeManifest(2)), kMaxManifestBytes).value();
  json["layers"][1]["digest"] = "sha256:short";
  EXPECT_THAT(Message(ParseManifest(DumpJson(json)).status()),
              HasSubstr("image manifest: layers[1]: a digest"));
  json["layers"][1] = 7;
  EXPECT_THAT(Message(ParseManifest(DumpJson(json)).status()), HasSubstr("layers[1]"));
  json["layers"] = "none";
  EXPECT_THAT(Message(ParseManifest(DumpJson(json)).status()), HasSubstr("\"layers\""));
}

TEST(ManifestTest, RefusesBytesThatCouldAlsoBeAnIndex) {
  Json json = ParseJson(SerializeManifest(SomeManifest(1)), kMaxManifestBytes).value();
  json["manifests"] = Json::array();
  EXPECT_FALSE(ParseManifest(DumpJson(json)).ok());
  json.erase("mediaType");
  EXPECT_FALSE(ParseIndex(DumpJson(json)).ok());
}

TEST(ManifestTest, ReadsDockersTypesAndNoOthers) {
  Json json = ParseJson(SerializeManifest(SomeManifest(1)), kMaxManifestBytes).value();
  json["mediaType"] = kDockerManifestType;
  EXPECT_EQ(ParseManifest(DumpJson(json))->media_type, kDockerManifestType);
  json.erase("mediaType");
  EXPECT_EQ(ParseManifest(DumpJson(json))->media_type, kManifestType);
  json["mediaType"] = kIndexType;
  EXPECT_FALSE(ParseManifest(DumpJson(json)).ok());
  json["mediaType"] = kManifestType;
  json["schemaVersion"] = 1;
  EXPECT_FALSE(ParseManifest(DumpJson(json)).ok());
}

TEST(DescriptorTest, SizesAreThoseOfInt64) {
  Json json = DescriptorToJson(SomeDescriptor(kLayerTarType, "x"));
  json["size"] = uint64_t{9223372036854775807u};
  EXPECT_TRUE(DescriptorFromJson(json).ok());
  json["size"] = uint64_t{9223372036854775808u};
  EXPECT_FALSE(DescriptorFromJson(json).ok());
  json["size"] = -1;
  EXPECT_FALSE(DescriptorFromJson(json).ok());
}

TEST(DescriptorTest, MediaTypesCannotSplitAHeader) {
  Json json = DescriptorToJson(SomeDescriptor("a/b\r\nX: y", "x"));
  EXPECT_FALSE(DescriptorFromJson(json).ok());
  json["mediaType"] = std::string(255, 'a');
  EXPECT_TRUE(DescriptorFromJson(json).ok());
  json["mediaType"] = std::string(256, 'a');
  EXPECT_FALSE(DescriptorFromJson(json).ok());
}

TEST(DescriptorTest, AnnotationsAreTexts) {
  Json json = DescriptorToJson(SomeDescriptor(kLayerTarType, "x"));
  json["annotations"] = Json{{"a", 1}};
  EXPECT_FALSE(DescriptorFromJson(json).ok());
  json["annotations"] = Json::array();
  EXPECT_FALSE(DescriptorFromJson(json).ok());
  json["annotations"] = nullptr;
  EXPECT_TRUE(DescriptorFromJson(json).ok());
}

TEST(IndexTest, ReadsPlatforms) {
  Descriptor entry = SomeDescriptor(kManifestType, "m");
  entry.os = "linux";
  entry.architecture = "arm64";
  const Json json = {{"schemaVersion", 2}, {"manifests", {DescriptorToJson(entry)}}};
  const Index index = ParseIndex(DumpJson(json)).value();
  ASSERT_EQ(index.manifests.size(), 1u);
  EXPECT_EQ(index.manifests[0].os, "linux");
  EXPECT_EQ(index.manifests[0].architecture, "arm64");
}

TEST(DiffIdsTest, ReadsThemBottomToTop) {
  const Digest a = Digest::Of(AsBytes("a")), b = Digest::Of(AsBytes("b"));
  const Json json = {{"rootfs", {{"type", "layers"}, {"diff_ids", {a.text(), b.text()}}}}};
  EXPECT_EQ(ParseDiffIds(DumpJson(json)).value(), (std::vector<Digest>{a, b}));
}

TEST(DiffIdsTest, RefusesOtherRootfs) {
  EXPECT_FALSE(ParseDiffIds("{}").ok());
  EXPECT_FALSE(ParseDiffIds(R"({"rootfs":{"type":"x","diff_ids":[]}})").ok());
  EXPECT_FALSE(ParseDiffIds(R"({"rootfs":{"type":"layers","diff_ids":[1]}})").ok());
  EXPECT_FALSE(ParseDiffIds(R"({"rootfs":{"type":"layers","diff_ids":["sha256:"]}})").ok());
}

TEST(MediaTypeTest, OnlyTheSuffixMeansEncrypted) {
  EXPECT_TRUE(IsEncrypted(kLayerTarEncryptedType));
  EXPECT_TRUE(IsEncrypted("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"));
  EXPECT_FALSE(IsEncrypted(kLayerTarType));
  EXPECT_FALSE(IsEncrypted("x+encrypted+gzip"));
}

}  // namespace
}  // namespace kapsule::oci
