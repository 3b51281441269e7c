#include "snapshotter/image_finder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/file.h"
#include "core/containerd/testing.h"

namespace kapsule::snapshotter {
namespace {

using containerd::ImportImage;
using containerd::OneFileTar;
using containerd::TestContainerd;
using containerd::TestImage;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kPlain[] = "registry.test/acme/plain:1";
constexpr char kIndexed[] = "registry.test/acme/indexed:1";

absl::Time Soon() { return absl::Now() + absl::Seconds(10); }

class ImageFinderTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = TestContainerd::Start();
    ASSERT_TRUE(started.ok()) << started.status();
    containerd_ = started->release();
    plain_ = Import(kPlain, "p", false);
    indexed_ = Import(kIndexed, "i", true);
  }
  static void TearDownTestSuite() {
    delete containerd_;
    containerd_ = nullptr;
  }
  // Three layers, which share the first with every other image.
  static TestImage Import(const char* name, const std::string& file, bool in_index) {
    auto image = ImportImage(*containerd_, "default", name,
                             {{.bytes = OneFileTar("shared", "x")},
                              {.bytes = OneFileTar(file, "one")},
                              {.bytes = OneFileTar(file, "two")}},
                             in_index);
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *image : TestImage{};
  }
  std::vector<FoundImage> OfChain(const std::string& ns, const oci::Digest& chain_id) {
    auto found = finder_.OfChain(ns, chain_id, Soon());
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() ? *found : std::vector<FoundImage>{};
  }

  static TestContainerd* containerd_;
  static TestImage plain_, indexed_;
  containerd::Client client_{containerd_->socket()};
  ImageFinder finder_{&client_};
};

TestContainerd* ImageFinderTest::containerd_ = nullptr;
TestImage ImageFinderTest::plain_;
TestImage ImageFinderTest::indexed_;

TEST_F(ImageFinderTest, FindsEveryPositionOfAChain) {
  for (size_t i = 1; i < 3; ++i) {
    const auto found = OfChain("default", plain_.chain_ids[i]);
    ASSERT_THAT(found, SizeIs(1));
    EXPECT_EQ(found[0].name, kPlain);
    EXPECT_EQ(found[0].title(), kPlain);
    EXPECT_EQ(found[0].position, i);
    EXPECT_EQ(found[0].manifest->digest, plain_.manifest);
    EXPECT_EQ(found[0].layer().digest, plain_.layers[i].digest);
  }
}

TEST_F(ImageFinderTest, FindsTheManifestOfAnIndexWhoseOtherEntriesAreMissing) {
  const auto found = OfChain("default", indexed_.chain_ids[2]);
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_EQ(found[0].name, kIndexed);
  EXPECT_EQ(found[0].manifest->digest, indexed_.manifest);
}

TEST_F(ImageFinderTest, FindsAllImagesOfASharedChain) {
  EXPECT_THAT(OfChain("default", plain_.chain_ids[0]), SizeIs(2));
}

TEST_F(ImageFinderTest, FindsNothingInAnotherNamespaceOrForAnotherChain) {
  EXPECT_THAT(OfChain("other", plain_.chain_ids[1]), IsEmpty());
  EXPECT_THAT(OfChain("default", oci::Digest::Of(AsBytes("no chain"))), IsEmpty());
  // A diff_id alone is not a chain.
  EXPECT_THAT(OfChain("default", plain_.layers[1].digest), IsEmpty());
}

TEST_F(ImageFinderTest, AsksOneImageOnly) {
  const auto found = finder_.OfImage("default", kPlain, plain_.chain_ids[0], Soon());
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_THAT(*found, SizeIs(1));
  EXPECT_EQ(found->front().manifest->digest, plain_.manifest);
  EXPECT_THAT(finder_.OfImage("default", kPlain, indexed_.chain_ids[1], Soon()).value(), IsEmpty());
  EXPECT_TRUE(absl::IsNotFound(
      finder_.OfImage("default", "registry.test/none:1", plain_.chain_ids[0], Soon()).status()));
}

TEST_F(ImageFinderTest, AsksTheImageOfADigestOnly) {
  const oci::Digest& shared = plain_.chain_ids[0];
  const auto manifests = [&](const std::string& ns, const oci::Digest& image) {
    std::vector<oci::Digest> digests;
    const auto images = finder_.OfDigest(ns, image, shared, Soon());
    EXPECT_TRUE(images.ok()) << images.status();
    for (const FoundImage& found : images.value()) digests.push_back(found.manifest->digest);
    return digests;
  };
  EXPECT_THAT(manifests("default", plain_.manifest), ElementsAre(plain_.manifest));
  EXPECT_THAT(manifests("default", indexed_.manifest), ElementsAre(indexed_.manifest));
  const auto index = client_.GetImage("default", kIndexed, Soon());
  ASSERT_TRUE(index.ok()) << index.status();
  ASSERT_NE(index->target.digest, indexed_.manifest);
  EXPECT_THAT(manifests("default", index->target.digest), ElementsAre(indexed_.manifest));
  EXPECT_THAT(manifests("other", plain_.manifest), IsEmpty());
  EXPECT_THAT(manifests("default", plain_.layers[0].digest), IsEmpty());
}

TEST_F(ImageFinderTest, ADigestThatWasReadAsAManifestIsStillAnIndex) {
  const auto record = client_.GetImage("default", kIndexed, Soon());
  ASSERT_TRUE(record.ok()) << record.status();
  const oci::Digest& layer = indexed_.layers[1].digest;
  ASSERT_EQ(client_.SetContentLabel("default", record->target.digest,
                                    "containerd.io/gc.ref.content.l.1", layer.text(), Soon()),
            absl::OkStatus());
  ImageFinder finder(&client_);
  ASSERT_TRUE(finder.OfLayer("default", layer, 1, indexed_.chain_ids[1], Soon()).ok());
  EXPECT_THAT(finder.OfImage("default", kIndexed, indexed_.chain_ids[1], Soon()).value(),
              SizeIs(1));
}

TEST_F(ImageFinderTest, FindsAManifestByItsLayerWithoutAnImageRecord) {
  const auto found =
      finder_.OfLayer("default", plain_.layers[1].digest, 1, plain_.chain_ids[1], Soon());
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_THAT(*found, SizeIs(1));
  EXPECT_EQ(found->front().name, "");
  EXPECT_EQ(found->front().title(), "with manifest " + plain_.manifest.text());
  EXPECT_EQ(found->front().position, 1u);

  const auto none = [this](const oci::Digest& layer, size_t depth, const oci::Digest& chain_id) {
    return finder_.OfLayer("default", layer, depth, chain_id, Soon()).value();
  };
  EXPECT_THAT(none(plain_.layers[1].digest, 2, plain_.chain_ids[1]), IsEmpty());
  EXPECT_THAT(none(plain_.layers[1].digest, 1, plain_.chain_ids[2]), IsEmpty());
  EXPECT_THAT(none(plain_.layers[1].digest, 1, indexed_.chain_ids[1]), IsEmpty());
}

TEST_F(ImageFinderTest, FindsTheSameWithACacheThatHoldsNothing) {
  ImageFinder forgetful(&client_, 1);
  for (int i = 0; i < 2; ++i)
    EXPECT_THAT(forgetful.OfChain("default", plain_.chain_ids[0], Soon()).value(), SizeIs(2));
}

TEST_F(ImageFinderTest, AnswersFromItsCacheWhenTheManifestIsUnreadable) {
  ASSERT_THAT(OfChain("default", plain_.chain_ids[1]), SizeIs(1));
  const auto blob = containerd_->content_root() / "blobs/sha256" / plain_.manifest.hex();
  auto aside = blob;
  aside += ".aside";
  std::filesystem::rename(blob, aside);
  EXPECT_THAT(OfChain("default", plain_.chain_ids[1]), SizeIs(1));
  // Without the cache an unreadable manifest is passed over.
  ImageFinder fresh(&client_);
  EXPECT_THAT(fresh.OfChain("default", plain_.chain_ids[1], Soon()).value(), IsEmpty());
  EXPECT_THAT(fresh.OfChain("default", indexed_.chain_ids[1], Soon()).value(), SizeIs(1));
  std::filesystem::rename(aside, blob);
  EXPECT_THAT(fresh.OfChain("default", plain_.chain_ids[1], Soon()).value(), SizeIs(1));
}

TEST_F(ImageFinderTest, SaysWhyTheManifestOfAnImageIsOfNoUse) {
  const auto blob = containerd_->content_root() / "blobs/sha256" / plain_.manifest.hex();
  auto aside = blob;
  aside += ".aside";
  std::filesystem::rename(blob, aside);
  ASSERT_EQ(WriteFileAtomic(blob, AsBytes("other bytes"), 0600), absl::OkStatus());
  ImageFinder fresh(&client_);
  for (const absl::Status& status :
       {fresh.OfImage("default", kPlain, plain_.chain_ids[1], Soon()).status(),
        fresh.OfDigest("default", plain_.manifest, plain_.chain_ids[1], Soon()).status()}) {
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("manifest " + plain_.manifest.text()));
    EXPECT_THAT(Message(status), HasSubstr("other bytes than its digest says"));
  }
  EXPECT_THAT(fresh.OfChain("default", plain_.chain_ids[1], Soon()).value(), IsEmpty());
  std::filesystem::rename(aside, blob);
}

TEST_F(ImageFinderTest, StopsAtItsLimitOfManifests) {
  for (size_t i = 0; i <= ImageFinder::kMaxFound; ++i) {
    const std::vector<containerd::TestLayer> layers = {
        {.bytes = OneFileTar("shared", "x")}, {.bytes = OneFileTar("n", fmt::to_string(i))}};
    const std::string name = fmt::format("r.test/t:{}", i);
    ASSERT_TRUE(ImportImage(*containerd_, "many", name, layers, false).ok());
  }
  EXPECT_THAT(OfChain("many", plain_.chain_ids[0]), SizeIs(ImageFinder::kMaxFound));
}

TEST_F(ImageFinderTest, FindsAManifestOnceByTheNameThatPeopleKnow) {
  const std::string id = oci::Digest::Of(AsBytes("config")).text();
  const std::string later = "zoo.test/plain:1";  // containerd lists names in order
  ASSERT_TRUE(containerd_->Ctr({"images", "tag", kPlain, id, later}).ok());
  EXPECT_THAT(OfChain("default", plain_.chain_ids[2]), SizeIs(1));
  EXPECT_EQ(OfChain("default", plain_.chain_ids[2])[0].name, kPlain);
  ASSERT_TRUE(containerd_->Ctr({"images", "rm", kPlain}).ok());
  EXPECT_EQ(OfChain("default", plain_.chain_ids[2])[0].name, later);
  ASSERT_TRUE(containerd_->Ctr({"images", "tag", later, kPlain}).ok());
  ASSERT_TRUE(containerd_->Ctr({"images", "rm", id, later}).ok());
}

TEST_F(ImageFinderTest, SaysThatContainerdDoesNotAnswer) {
  containerd::Client nobody("/tmp/kapsule-no-such.sock");
  ImageFinder finder(&nobody);
  EXPECT_TRUE(absl::IsUnavailable(finder.OfChain("default", plain_.chain_ids[0], Soon()).status()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      finder_.OfChain("default", plain_.chain_ids[0], absl::InfinitePast()).status()));
}

}  // namespace
}  // namespace kapsule::snapshotter
