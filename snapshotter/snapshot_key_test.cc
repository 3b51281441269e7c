#include "snapshotter/snapshot_key.h"

#include <gtest/gtest.h>

namespace kapsule::snapshotter {
namespace {

TEST(SnapshotKeyTest, ContainersAndUnpackersHaveANamespace) {
  const SnapshotKey container = SnapshotKey::Parse("k8s.io/5/0123abc");
  EXPECT_EQ(container.ns, "k8s.io");
  EXPECT_EQ(container.client, "0123abc");
  EXPECT_FALSE(container.extracted_chain);

  const oci::Digest chain = oci::Digest::Of(AsBytes("x"));
  const SnapshotKey unpack = SnapshotKey::Parse("default/3/extract-12-Ab_- " + chain.text());
  EXPECT_EQ(unpack.ns, "default");
  EXPECT_EQ(unpack.extracted_chain, chain);
}

TEST(SnapshotKeyTest, AContainerMayBeCalledExtract) {
  EXPECT_FALSE(SnapshotKey::Parse("default/3/extract-12").extracted_chain);
  EXPECT_FALSE(SnapshotKey::Parse("default/3/extract-12-abcd sha256:12").extracted_chain);
  const std::string chain = oci::Digest::Of({}).text();
  EXPECT_FALSE(SnapshotKey::Parse("default/3/x-12-abcd " + chain).extracted_chain);
  EXPECT_FALSE(SnapshotKey::Parse("default/3/extract-12-abcd " + chain + " ").extracted_chain);
}

TEST(SnapshotKeyTest, KeysThatArePaths) {
  const SnapshotKey mount = SnapshotKey::Parse("default/5//mnt/x");
  EXPECT_EQ(mount.ns, "default");
  EXPECT_EQ(mount.client, "/mnt/x");
  EXPECT_FALSE(mount.image_volume);
  EXPECT_FALSE(mount.volume_image);
}

TEST(SnapshotKeyTest, AnImageVolumeNamesItsImage) {
  const std::string folder =
      "k8s.io/5//run/containerd/io.containerd.grpc.v1.cri/image-volumes/ab12/";
  const oci::Digest image = oci::Digest::Of(AsBytes("manifest"));
  const SnapshotKey volume = SnapshotKey::Parse(folder + image.hex());
  EXPECT_TRUE(volume.image_volume);
  EXPECT_EQ(volume.volume_image, image);
  for (const std::string& end : {std::string(), std::string("cd"), image.hex() + "0",
                                 image.hex() + "/", image.text(), image.hex().substr(1)}) {
    const SnapshotKey bad = SnapshotKey::Parse(folder + end);
    EXPECT_TRUE(bad.image_volume) << end;
    EXPECT_FALSE(bad.volume_image) << end;
  }
}

TEST(SnapshotKeyTest, KeysWithoutANamespaceAreAllClient) {
  for (const char* key : {"", "/", "a", "a/", "a/b", "a/1", "a/1/", "/tmp/x", "/1/x", "a//x",
                          "a/1x/b", "sha256:ab"}) {
    const SnapshotKey parsed = SnapshotKey::Parse(key);
    if (std::string(key) == "a/1/") {
      EXPECT_EQ(parsed.ns, "a");
      EXPECT_EQ(parsed.client, "");
      continue;
    }
    EXPECT_EQ(parsed.ns, "") << key;
    EXPECT_EQ(parsed.client, key);
  }
}

}  // namespace
}  // namespace kapsule::snapshotter
