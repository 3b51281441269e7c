#include "snapshotter/pre_register.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/containerd/testing.h"

namespace kapsule::snapshotter {
namespace {

using ::testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(10); }

oci::Descriptor Layer(const std::string& bytes, bool labelled) {
  oci::Descriptor layer;
  layer.digest = oci::Digest::Of(AsBytes(bytes));
  layer.size = bytes.size();
  if (labelled) {
    const oci::LayerLabel label{layer.digest, layer.size, layer.digest, "model"};
    layer.annotations[oci::kLayerLabel] = label.ToJson().value();
  }
  return layer;
}

// Where the diff_ids are not given, they are the digests.
size_t Count(std::vector<oci::Descriptor> layers, std::vector<oci::Digest> diff_ids = {}) {
  for (size_t i = diff_ids.size(); i < layers.size(); ++i) diff_ids.push_back(layers[i].digest);
  return CountKapsuleLayers({{}, {}, std::move(layers), std::move(diff_ids), {}});
}

TEST(CountKapsuleLayersTest, CountsFromTheBottomToTheFirstWithoutALabel) {
  EXPECT_EQ(Count({}), 0u);
  EXPECT_EQ(Count({Layer("a", false), Layer("b", true)}), 0u);
  EXPECT_EQ(Count({Layer("a", true), Layer("b", true)}), 2u);
  EXPECT_EQ(Count({Layer("a", true), Layer("b", false), Layer("c", true)}), 1u);
}

TEST(CountKapsuleLayersTest, DoesNotCountALabelOfOtherBytesOrABadOne) {
  oci::Descriptor other = Layer("a", true);
  other.digest = oci::Digest::Of(AsBytes("b"));
  EXPECT_EQ(Count({other}), 0u);
  oci::Descriptor bad = Layer("a", true);
  bad.annotations[oci::kLayerLabel] = "{}";
  EXPECT_EQ(Count({bad}), 0u);
}

TEST(CountKapsuleLayersTest, CountsNoneWhereAPlainLayerIsNotWhatItsDiffIdNames) {
  const oci::Digest somebody = oci::Digest::Of(AsBytes("somebody's tar"));
  oci::Descriptor layer = Layer("a", true);
  EXPECT_EQ(Count({layer}, {somebody}), 0u);
  EXPECT_EQ(Count({Layer("b", true), layer}, {Layer("b", true).digest, somebody}), 0u);
  layer.media_type = oci::kLayerTarEncryptedType;  // its key will tell
  EXPECT_EQ(Count({layer}, {somebody}), 1u);
}

class PreRegisterTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = containerd::TestContainerd::Start();
    ASSERT_TRUE(started.ok()) << started.status();
    containerd_ = started->release();
  }
  static void TearDownTestSuite() {
    delete containerd_;
    containerd_ = nullptr;
  }
  static containerd::TestContainerd* containerd_;
  containerd::Client client_{containerd_->socket()};
  ImageFinder finder_{&client_};
};

containerd::TestContainerd* PreRegisterTest::containerd_ = nullptr;

TEST_F(PreRegisterTest, LeavesOrdinaryImagesAlone) {
  const auto image = ImportImage(*containerd_, "default", "r.test/ordinary:1",
                                 {{.bytes = containerd::OneFileTar("a", "b")}});
  ASSERT_TRUE(image.ok()) << image.status();
  // A snapshotter that does not exist would be an error, were it asked.
  EXPECT_EQ(PreRegisterImage(&client_, &finder_, "none", "default", image->chain_ids[0], Soon()),
            absl::OkStatus());
  EXPECT_EQ(PreRegisterImage(&client_, &finder_, "none", "default",
                             oci::Digest::Of(AsBytes("no chain")), Soon()),
            absl::OkStatus());
}

TEST_F(PreRegisterTest, SaysThatTheSnapshotterDidNotClaimALayer) {
  const std::string tar = containerd::OneFileTar("a", "labelled");
  const auto image = ImportImage(*containerd_, "default", "r.test/model:1",
                                 {{.bytes = tar, .annotations = Layer(tar, true).annotations},
                                  {.bytes = containerd::OneFileTar("b", "on top")}});
  ASSERT_TRUE(image.ok()) << image.status();
  const absl::Status status =
      PreRegisterImage(&client_, &finder_, "overlayfs", "default", image->chain_ids[0], Soon());
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("image r.test/model:1, layer 0 (sha256:"));
  // The ordinary layer on top is none of its business.
  EXPECT_EQ(
      PreRegisterImage(&client_, &finder_, "overlayfs", "default", image->chain_ids[1], Soon()),
      absl::OkStatus());
}

TEST_F(PreRegisterTest, AsksToPullAgainWhereAnEncryptedImageIsNotRegistered) {
  oci::Annotations annotations = Layer("ciphertext", true).annotations;
  const auto image = ImportImage(*containerd_, "default", "r.test/encrypted:1",
                                 {{.bytes = "ciphertext",
                                   .media_type = oci::kLayerTarEncryptedType,
                                   .annotations = annotations}});
  ASSERT_TRUE(image.ok()) << image.status();
  const absl::Status status = PreRegisterImage(&client_, &finder_, "no-such-snapshotter", "default",
                                               image->chain_ids[0], Soon());
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("pull again"));
  EXPECT_THAT(Message(status), HasSubstr("image r.test/encrypted:1, layer 0"));
  EXPECT_THAT(Message(status), HasSubstr("no-such-snapshotter"));
}

TEST_F(PreRegisterTest, RefusesMoreLayersThanCanBeMounted) {
  const std::string tar = containerd::OneFileTar("a", "many");
  const containerd::TestLayer layer{.bytes = tar, .annotations = Layer(tar, true).annotations};
  const auto import = [&](const std::string& name, size_t layers) {
    return ImportImage(*containerd_, "many", name, std::vector(layers, layer));
  };
  const auto image = import("r.test/many:1", 501);
  ASSERT_TRUE(image.ok()) << image.status();
  const auto pre_register = [&] {
    return PreRegisterImage(&client_, &finder_, "none", "many", image->chain_ids[0], Soon());
  };
  EXPECT_TRUE(absl::IsAborted(pre_register()));
  EXPECT_EQ(Message(pre_register()),
            "image r.test/many:1 has 501 layers, more than the 500 that overlayfs takes: use an "
            "image with fewer layers");
  ASSERT_TRUE(import("r.test/some:1", 2).ok());
  EXPECT_THAT(Message(pre_register()), HasSubstr("image r.test/some:1, layer 0"));
}

TEST_F(PreRegisterTest, SaysThatContainerdDoesNotAnswer) {
  containerd::Client nobody("/tmp/kapsule-no-such.sock");
  ImageFinder finder(&nobody);
  EXPECT_TRUE(absl::IsUnavailable(
      PreRegisterImage(&nobody, &finder, "x", "default", oci::Digest(), Soon())));
}

}  // namespace
}  // namespace kapsule::snapshotter
