#include "kapsule-ctl/content_labels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kapsule::ctl {
namespace {

using containerd::Labels;
using ::testing::ElementsAre;
using ::testing::Pair;

oci::Descriptor Blob(const std::string& type, const std::string& bytes) {
  return {type, oci::Digest::Of(AsBytes(bytes)), bytes.size(), {}, "", ""};
}
std::string DigestOf(const std::string& bytes) { return oci::Digest::Of(AsBytes(bytes)).text(); }

Labels Source(const std::string& name, Labels labels = {}) {
  AddSource(oci::Reference::Parse(name).value(), &labels);
  return labels;
}

TEST(ContentLabelsTest, AManifestKeepsItsConfigAndItsLayers) {
  oci::Manifest manifest;
  manifest.config = Blob(oci::kConfigType, "config");
  manifest.layers = {Blob(oci::kLayerTarType, "a"), Blob("application/x-other", "b"),
                     Blob(oci::kLayerTarEncryptedType, "c"),
                     Blob("application/vnd.docker.image.rootfs.diff.tar.gzip", "d")};
  EXPECT_THAT(LabelsOfManifest(manifest),
              ElementsAre(Pair("containerd.io/gc.ref.content.0", DigestOf("b")),
                          Pair("containerd.io/gc.ref.content.config", DigestOf("config")),
                          Pair("containerd.io/gc.ref.content.l.0", DigestOf("a")),
                          Pair("containerd.io/gc.ref.content.l.1", DigestOf("c")),
                          Pair("containerd.io/gc.ref.content.l.2", DigestOf("d"))));
}

TEST(ContentLabelsTest, AnIndexKeepsItsManifests) {
  const oci::Index index{{Blob(oci::kManifestType, "a"), Blob(oci::kDockerManifestType, "b")}};
  EXPECT_THAT(LabelsOfIndex(index),
              ElementsAre(Pair("containerd.io/gc.ref.content.m.0", DigestOf("a")),
                          Pair("containerd.io/gc.ref.content.m.1", DigestOf("b"))));
}

TEST(ContentLabelsTest, TheSourceHasNoPort) {
  const std::string prefix = "containerd.io/distribution.source.";
  EXPECT_THAT(Source("r.test:5000/a/b:1"), ElementsAre(Pair(prefix + "r.test", "a/b")));
  EXPECT_THAT(Source("127.0.0.1:5000/b"), ElementsAre(Pair(prefix + "127.0.0.1", "b")));
  EXPECT_THAT(Source("[::1]:5000/b"), ElementsAre(Pair(prefix + "::1", "b")));
  EXPECT_THAT(Source("busybox"), ElementsAre(Pair(prefix + "docker.io", "library/busybox")));
}

TEST(ContentLabelsTest, SourcesOfOneHostAreListedOnceEach) {
  const std::string key = "containerd.io/distribution.source.r.test";
  EXPECT_THAT(Source("r.test/b", {{key, "a,c"}}), ElementsAre(Pair(key, "a,b,c")));
  EXPECT_THAT(Source("r.test/b", {{key, "a,b"}}), ElementsAre(Pair(key, "a,b")));
  const std::string full(oci::kMaxLabelBytes - key.size(), 'a');
  EXPECT_THAT(Source("r.test/b", {{key, full}}), ElementsAre(Pair(key, full)));
}

TEST(ContentLabelsTest, ASnapshotterIsToldWhatIsForIt) {
  oci::Descriptor layer = Blob(oci::kLayerTarType, "a");
  layer.annotations = {{oci::kLayerLabel, "label"}, {oci::kTitleAnnotation, "title"}};
  EXPECT_THAT(SnapshotLabels(layer, layer.digest),
              ElementsAre(Pair("containerd.io/snapshot.ref", DigestOf("a")),
                          Pair(oci::kLayerLabel, "label")));
}

}  // namespace
}  // namespace kapsule::ctl
