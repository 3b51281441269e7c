#include "core/image/base_image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/image/memory_store.h"

namespace kapsule::image {
namespace {
using testing::HasSubstr;

constexpr char kGzip[] = "application/vnd.oci.image.layer.v1.tar+gzip";

std::string ConfigWith(size_t diff_ids) {
  Json list = Json::array();
  for (size_t i = 0; i < diff_ids; ++i) list.push_back(oci::Digest::Of(AsBytes("d")).text());
  return DumpJson(Json{{"rootfs", {{"type", "layers"}, {"diff_ids", list}}}});
}

oci::Manifest ManifestOf(MemoryStore& store, const std::string& layer_type, size_t diff_ids = 1) {
  oci::Manifest manifest;
  manifest.config = store.Put(oci::kConfigType, ConfigWith(diff_ids));
  manifest.layers = {store.Put(layer_type, "layer")};
  return manifest;
}

void Publish(MemoryStore& store, const oci::Manifest& manifest) {
  store.manifest = oci::SerializeManifest(manifest);
  store.media_type = oci::kManifestType;
}

// An index whose entries lead to images with the platform as their layer type.
void PublishIndex(MemoryStore& store, const std::vector<std::pair<std::string, std::string>>& all) {
  Json index = {{"schemaVersion", 2}, {"manifests", Json::array()}};
  for (const auto& [os, architecture] : all) {
    const std::string bytes = oci::SerializeManifest(
        ManifestOf(store, "application/vnd.oci.image.layer.v1.tar+" + os + architecture));
    oci::Descriptor entry{.media_type = oci::kManifestType,
                          .digest = oci::Digest::Of(AsBytes(bytes)),
                          .size = bytes.size(),
                          .annotations = {},
                          .os = os,
                          .architecture = architecture};
    store.manifests[entry.digest] = bytes;
    index["manifests"].push_back(oci::DescriptorToJson(entry));
  }
  store.manifest = DumpJson(index);
  store.media_type = oci::kIndexType;
}

TEST(ReadBaseImageTest, ReadsLayersAndDiffIds) {
  MemoryStore store;
  Publish(store, ManifestOf(store, kGzip));
  const auto base = ReadBaseImage(store);
  ASSERT_TRUE(base.ok()) << base.status();
  ASSERT_EQ(base->layers.size(), 1u);
  EXPECT_EQ(base->layers[0].media_type, kGzip);
  EXPECT_EQ(base->diff_ids[0], oci::Digest::Of(AsBytes("d")));
}

TEST(ReadBaseImageTest, DockersLayersBecomeOcis) {
  MemoryStore store;
  Publish(store, ManifestOf(store, "application/vnd.docker.image.rootfs.diff.tar.gzip"));
  EXPECT_EQ(ReadBaseImage(store)->layers[0].media_type, kGzip);
}

TEST(ReadBaseImageTest, TakesLinuxAmd64OfAnIndex) {
  MemoryStore store;
  PublishIndex(store, {{"windows", "amd64"}, {"linux", "arm64"}, {"linux", "amd64"}});
  const auto base = ReadBaseImage(store);
  ASSERT_TRUE(base.ok()) << base.status();
  EXPECT_THAT(base->layers[0].media_type, HasSubstr("linuxamd64"));
}

TEST(ReadBaseImageTest, TakesTheOnlyImageOfAnIndexWithoutPlatforms) {
  MemoryStore store;
  PublishIndex(store, {{"", ""}});
  EXPECT_TRUE(ReadBaseImage(store).ok());
}

TEST(ReadBaseImageTest, AnIndexWithoutOurPlatformIsNotFound) {
  MemoryStore store;
  PublishIndex(store, {{"linux", "arm64"}, {"linux", "s390x"}});
  EXPECT_EQ(Describe(ReadBaseImage(store).status()),
            "not found: base image memory: no image for linux/amd64, only: linux/arm64 "
            "linux/s390x");
}

TEST(ReadBaseImageTest, RefusesWhatIsNoUsableImage) {
  MemoryStore store;
  Publish(store, ManifestOf(store, kGzip, 2));
  EXPECT_THAT(Describe(ReadBaseImage(store).status()), HasSubstr("1 layers and 2 diff_ids"));
  Publish(store, ManifestOf(store, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"));
  EXPECT_THAT(Describe(ReadBaseImage(store).status()), HasSubstr("foreign"));
  oci::Manifest artifact = ManifestOf(store, kGzip);
  artifact.config.media_type = "application/vnd.oci.empty.v1+json";
  Publish(store, artifact);
  EXPECT_THAT(Describe(ReadBaseImage(store).status()), HasSubstr("not a container image"));
  oci::Manifest large = ManifestOf(store, kGzip);
  large.config.size = oci::kMaxManifestBytes + 1;
  Publish(store, large);
  EXPECT_THAT(Describe(ReadBaseImage(store).status()), HasSubstr("more than the limit"));
  store.manifest = "[]";
  EXPECT_FALSE(ReadBaseImage(store).ok());
}

TEST(CopyBlobTest, CopiesWhatTheTargetHasNot) {
  MemoryStore from, to;
  const oci::Descriptor blob = from.Put(kGzip, "bytes");
  for (int round = 0; round < 2; ++round) {
    uint64_t told = 0;
    const auto count = [&told](uint64_t bytes) { return told += bytes, absl::OkStatus(); };
    ASSERT_TRUE(CopyBlob(from, to, blob, count).ok());
    EXPECT_EQ(told, 5u);
    EXPECT_EQ(to.blobs.at(blob.digest), "bytes");
    from.blobs.clear();  // the second round finds it in `to`
  }
}

TEST(CopyBlobTest, AFailedReadLeavesNothing) {
  MemoryStore from, to;
  const oci::Descriptor blob = MemoryStore().Put(kGzip, "bytes");
  EXPECT_FALSE(CopyBlob(from, to, blob, [](uint64_t) { return absl::OkStatus(); }).ok());
  EXPECT_TRUE(to.blobs.empty());
  EXPECT_EQ(to.uploads, 0);
}

}  // namespace
}  // namespace kapsule::image
