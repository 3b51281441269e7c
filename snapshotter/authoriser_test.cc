#include "snapshotter/authoriser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/containerd/testing.h"

namespace kapsule::snapshotter {
namespace {

using containerd::OneFileTar;
using containerd::TestContainerd;
using containerd::TestImage;
using ::testing::HasSubstr;

constexpr char kImageA[] = "r.test/acme/a:1";
constexpr char kImageB[] = "r.test/acme/b:1";

absl::Time Soon() { return absl::Now() + absl::Seconds(10); }

oci::Annotations Wrapped(const std::string& key) { return {{oci::kJweAnnotation, key}}; }

class AuthoriserTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = TestContainerd::Start();
    ASSERT_TRUE(started.ok()) << started.status();
    containerd_ = started->release();
    const TestImage image = Import("default", kImageA, "ciphertext", "for A");
    layer_.id = 2;
    layer_.depth = 1;
    layer_.chain_id = image.chain_ids[1];
    layer_.label.digest = image.layers[1].digest;
    Import("default", kImageB, "ciphertext", "for B");
    Import("only-b", kImageB, "ciphertext", "for B");
    Import("other-bytes", kImageB, "foreign ciphertext", "for A");
  }
  static void TearDownTestSuite() {
    delete containerd_;
    containerd_ = nullptr;
  }
  // Images of one chain: an encrypted layer above a plain one.
  static TestImage Import(const char* ns, const char* name, const char* ciphertext,
                          const char* key) {
    auto image = ImportImage(*containerd_, ns, name,
                             {{.bytes = OneFileTar("skeleton", "")},
                              {.bytes = ciphertext,
                               .media_type = oci::kLayerTarEncryptedType,
                               .annotations = Wrapped(key),
                               .diff_id = oci::Digest::Of(AsBytes("plaintext"))}});
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *image : TestImage{};
  }

  // As if the layer had been opened with the key of image A.
  absl::Status Authorise(const std::string& ns, const std::string& container = "no-container",
                         uint64_t opening = 0) {
    return Authorise(SnapshotKey{ns, container}, layer_,
                     {kImageA, true, Wrapped("for A"), opening});
  }
  absl::Status Authorise(const SnapshotKey& key, const ModelLayer& layer, const Opened& opened) {
    return authoriser_.Authorise(key, {layer}, {0, {std::make_shared<const Opened>(opened)}},
                                 Soon());
  }

  static TestContainerd* containerd_;
  static ModelLayer layer_;
  int asked_ = 0;
  absl::Status answer_;
  containerd::Client client_{containerd_->socket()};
  ImageFinder finder_{&client_};
  Authoriser authoriser_{
      &client_, &finder_,
      [this](const oci::Digest& digest, const oci::Annotations& annotations, absl::Time) {
        ++asked_;
        EXPECT_EQ(digest, layer_.label.digest);
        EXPECT_EQ(annotations, Wrapped("for B"));
        return answer_;
      }};
};

TestContainerd* AuthoriserTest::containerd_ = nullptr;
ModelLayer AuthoriserTest::layer_;

TEST_F(AuthoriserTest, TheAnnotationsThatOpenedALayerNeedNoQuestion) {
  EXPECT_EQ(Authorise("default"), absl::OkStatus());
  EXPECT_EQ(asked_, 0);
}

TEST_F(AuthoriserTest, OtherAnnotationsAreComparedOnceForEachOpening) {
  EXPECT_EQ(Authorise("only-b"), absl::OkStatus());
  EXPECT_EQ(Authorise("only-b"), absl::OkStatus());
  EXPECT_EQ(asked_, 1);
  EXPECT_EQ(Authorise("only-b", "no-container", 1), absl::OkStatus());
  EXPECT_EQ(asked_, 2);
}

TEST_F(AuthoriserTest, ARefusalNamesImageLayerAndCauseAndIsNotKept) {
  answer_ = absl::PermissionDeniedError("it unwraps to another key");
  for (int i = 1; i <= 2; ++i) {
    const absl::Status status = Authorise("only-b");
    EXPECT_TRUE(absl::IsPermissionDenied(status));
    EXPECT_EQ(Message(status), fmt::format("image {}, layer 1 ({}): it unwraps to another key",
                                           kImageB, layer_.label.digest.text()));
    EXPECT_EQ(asked_, i);
  }
}

TEST_F(AuthoriserTest, NoKeyIsARefusalAndNoKeyproviderIsNot) {
  answer_ = absl::NotFoundError("no key for it on this node");
  EXPECT_TRUE(absl::IsPermissionDenied(Authorise("only-b")));
  answer_ = absl::UnavailableError("keyprovider: connection refused");
  EXPECT_TRUE(absl::IsUnavailable(Authorise("only-b")));
}

TEST_F(AuthoriserTest, AnImageOfTheSameChainWithOtherCiphertextIsRefusedUnasked) {
  const absl::Status status = Authorise("other-bytes");
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("other bytes at this position"));
  EXPECT_EQ(asked_, 0);
}

TEST_F(AuthoriserTest, ANamespaceWithoutSuchAnImageIsRefused) {
  const absl::Status status = Authorise("empty");
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("no image of namespace empty"));
}

// Somebody's tar that an image has at the place of A's encrypted layer.
class SquatterTest : public AuthoriserTest {
 protected:
  static ModelLayer Squat(const char* ns, const char* media_type) {
    const std::string tar = OneFileTar("evil", "");
    const auto image = ImportImage(*containerd_, ns, "r.test/evil/squatter:1",
                                   {{.bytes = OneFileTar("skeleton", "")},
                                    {.bytes = tar,
                                     .media_type = media_type,
                                     .annotations = Wrapped("for A"),
                                     .diff_id = oci::Digest::Of(AsBytes("plaintext"))}});
    EXPECT_TRUE(image.ok()) << image.status();
    ModelLayer layer = layer_;
    layer.label.digest = oci::Digest::Of(AsBytes(tar));
    EXPECT_EQ(image->chain_ids[1], layer.chain_id);
    return layer;
  }
  static constexpr char kPlain[] = "application/vnd.oci.image.layer.v1.tar";
};

TEST_F(SquatterTest, AnImageThatNamesOtherBytesIsRefusedThoughTheLayerIsPlain) {
  const ModelLayer squatter = Squat("squatter-elsewhere", kPlain);
  const absl::Status status =
      Authorise({"default", "c"}, squatter, {"squatter", false, Wrapped("for A")});
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("other bytes at this position"));
}

TEST_F(SquatterTest, APlainLayerThatIsNotItsDiffIdIsRefusedToItsOwnImage) {
  const ModelLayer squatter = Squat("squatter-own", kPlain);
  const absl::Status status =
      Authorise({"squatter-own", "c"}, squatter, {"squatter", false, Wrapped("for A")});
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("not what its diff_id names"));
}

TEST_F(SquatterTest, AnImageHasTheLayerEncryptedOrPlainAsItWasOpened) {
  const ModelLayer squatter = Squat("squatter-types", oci::kLayerTarEncryptedType);
  const SnapshotKey key{"squatter-types", "c"};
  EXPECT_EQ(Authorise(key, squatter, {"squatter", true, Wrapped("for A")}), absl::OkStatus());
  const absl::Status status = Authorise(key, squatter, {"squatter", false, Wrapped("for A")});
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("open as a plain layer"));
}

TEST_F(AuthoriserTest, APlainLayerOfTheImageIsAuthorised) {
  ModelLayer plain = layer_;
  plain.depth = 0;
  plain.label.digest = oci::Digest::Of(AsBytes(OneFileTar("skeleton", "")));
  plain.chain_id = plain.label.digest;
  EXPECT_EQ(Authorise({"default", "c"}, plain, {kImageA, false, {}}), absl::OkStatus());
  EXPECT_TRUE(absl::IsPermissionDenied(Authorise({"empty", "c"}, plain, {kImageA, false, {}})));
}

TEST_F(AuthoriserTest, OnlyTheImageOfAVolumeCounts) {
  answer_ = absl::PermissionDeniedError("it unwraps to another key");
  const auto authorise = [this](const std::optional<oci::Digest>& image) {
    SnapshotKey key{"default", "/image-volumes/1/2"};
    key.image_volume = true;
    key.volume_image = image;
    return Authorise(key, layer_, {kImageA, true, Wrapped("for A")});
  };
  EXPECT_EQ(authorise(client_.GetImage("default", kImageA, Soon())->target.digest),
            absl::OkStatus());
  EXPECT_EQ(asked_, 0);
  // A would be let in, B is asked.
  absl::Status status = authorise(client_.GetImage("default", kImageB, Soon())->target.digest);
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_EQ(asked_, 1);
  for (const auto& other : {std::optional(layer_.label.digest), std::optional<oci::Digest>()}) {
    status = authorise(other);
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  }
  EXPECT_EQ(asked_, 1);
}

TEST_F(AuthoriserTest, OnlyTheImageOfAContainerCounts) {
  constexpr char kRun[] = "r.test/acme/run:1";
  const auto ordinary =
      ImportImage(*containerd_, "default", kRun, {{.bytes = OneFileTar("ordinary", "x")}});
  ASSERT_TRUE(ordinary.ok()) << ordinary.status();
  absl::Status made =
      containerd_->Ctr({"containers", "create", "--snapshotter", "overlayfs", kRun, "c1"});
  ASSERT_TRUE(made.ok()) << made;
  absl::Status status = Authorise("default", "c1");
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("image r.test/acme/run:1 of container c1 has no layer 1"));

  // The name now stands for what image B is: A would be let in, B is asked.
  made = containerd_->Ctr({"images", "tag", "--force", kImageB, kRun});
  ASSERT_TRUE(made.ok()) << made;
  EXPECT_EQ(Authorise("default", "c2"), absl::OkStatus());
  answer_ = absl::PermissionDeniedError("it unwraps to another key");
  status = Authorise("default", "c1");
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("image r.test/acme/run:1, layer 1"));
  EXPECT_EQ(asked_, 1);

  ASSERT_TRUE(containerd_->Ctr({"images", "rm", kRun}).ok());
  status = Authorise("default", "c1");
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("not in namespace default any more"));
  EXPECT_TRUE(containerd_->Ctr({"containers", "rm", "c1"}).ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
