#include "core/containerd/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/file.h"
#include "core/containerd/testing.h"

namespace kapsule::containerd {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kName[] = "registry.test/acme/tiny:enc";

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

class ClientTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = TestContainerd::Start();
    ASSERT_TRUE(started.ok()) << started.status();
    containerd_ = started->release();
    auto image =
        ImportImage(*containerd_, "default", kName,
                    {{.bytes = OneFileTar("a", "one")}, {.bytes = OneFileTar("b", "two")}});
    ASSERT_TRUE(image.ok()) << image.status();
    image_ = *image;
  }
  static void TearDownTestSuite() {
    delete containerd_;
    containerd_ = nullptr;
  }

  Client client_{containerd_->socket()};
  static TestContainerd* containerd_;
  static TestImage image_;
};

TestContainerd* ClientTest::containerd_ = nullptr;
TestImage ClientTest::image_;

TEST_F(ClientTest, ListsAndGetsImagesOfANamespace) {
  const auto images = client_.ListImages("default", Soon());
  ASSERT_TRUE(images.ok()) << images.status();
  ASSERT_THAT(*images, SizeIs(1));
  EXPECT_EQ(images->front().name, kName);
  EXPECT_EQ(images->front().target.digest, image_.manifest);
  EXPECT_EQ(images->front().target.media_type, oci::kManifestType);

  const auto image = client_.GetImage("default", kName, Soon());
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->target.digest, image_.manifest);

  EXPECT_THAT(client_.ListImages("other", Soon()).value(), IsEmpty());
  const absl::Status missing = client_.GetImage("other", kName, Soon()).status();
  EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
  EXPECT_THAT(Message(missing), HasSubstr(containerd_->socket().string()));
  EXPECT_THAT(Message(missing), HasSubstr(kName));
}

TEST_F(ClientTest, ListsNamespaces) {
  EXPECT_THAT(client_.ListNamespaces(Soon()).value(), Contains("default"));
}

TEST_F(ClientTest, ReadsABlobUpToItsLimitExactly) {
  const oci::Descriptor& layer = image_.layers[0];
  EXPECT_EQ(client_.ReadBlob("default", layer.digest, layer.size, Soon()).value(),
            OneFileTar("a", "one"));
  EXPECT_TRUE(client_.ReadBlob("default", layer.digest, layer.size + 1, Soon()).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(
      client_.ReadBlob("default", layer.digest, layer.size - 1, Soon()).status()));
  EXPECT_TRUE(absl::IsNotFound(
      client_.ReadBlob("default", oci::Digest::Of(AsBytes("none")), 1 << 20, Soon()).status()));
  EXPECT_TRUE(absl::IsNotFound(client_.ReadBlob("other", layer.digest, 1 << 20, Soon()).status()));
}

TEST_F(ClientTest, RefusesABlobWithOtherBytes) {
  auto image = ImportImage(*containerd_, "default", "registry.test/bad:1",
                           {{.bytes = OneFileTar("c", "will be damaged")}});
  ASSERT_TRUE(image.ok()) << image.status();
  const auto path = containerd_->content_root() / "blobs/sha256" / image->layers[0].digest.hex();
  std::string damaged = OneFileTar("c", "will be DAMAGED");
  ASSERT_TRUE(WriteFileAtomic(path, AsBytes(damaged), 0644).ok());
  EXPECT_TRUE(absl::IsDataLoss(
      client_.ReadBlob("default", image->layers[0].digest, 1 << 20, Soon()).status()));
  ASSERT_TRUE(containerd_->Ctr({"images", "rm", "--sync", "registry.test/bad:1"}).ok());
}

TEST_F(ClientTest, FindsTheManifestOfALayerByItsLabel) {
  const auto filter = [](size_t depth, const oci::Digest& digest) {
    return fmt::format("labels.\"containerd.io/gc.ref.content.l.{}\"=={}", depth, digest.text());
  };
  const auto found = client_.ListContent("default", filter(1, image_.layers[1].digest), 8, Soon());
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_THAT(*found, SizeIs(1));
  EXPECT_EQ(found->front().digest, image_.manifest);
  EXPECT_THAT(client_.ListContent("default", filter(0, image_.layers[1].digest), 8, Soon()).value(),
              IsEmpty());
  EXPECT_THAT(client_.ListContent("other", filter(1, image_.layers[1].digest), 8, Soon()).value(),
              IsEmpty());
}

TEST_F(ClientTest, ListContentStopsAtItsLimit) {
  EXPECT_THAT(client_.ListContent("default", "", 3, Soon()).value(), SizeIs(3));
  EXPECT_THAT(client_.ListContent("default", "", 4, Soon()).value(), SizeIs(4));
}

TEST_F(ClientTest, SetsOneLabelOfABlobAndLeavesTheOthers) {
  const std::string filter = "digest==" + image_.manifest.text();
  const size_t before = client_.ListContent("default", filter, 1, Soon()).value()[0].labels.size();
  ASSERT_TRUE(client_.SetContentLabel("default", image_.manifest, "a.b/c.d", "e", Soon()).ok());
  const Labels labels = client_.ListContent("default", filter, 1, Soon()).value()[0].labels;
  EXPECT_EQ(labels.at("a.b/c.d"), "e");
  EXPECT_EQ(labels.size(), before + 1);
  EXPECT_TRUE(absl::IsNotFound(client_.SetContentLabel("default", oci::Digest::Of(AsBytes("none")),
                                                       "a.b/c.d", "e", Soon())));
}

TEST_F(ClientTest, ReportsAFilterThatContainerdRefuses) {
  EXPECT_FALSE(client_.ListContent("default", "labels.==", 3, Soon()).ok());
}

TEST_F(ClientTest, KnowsTheImageOfAContainer) {
  ASSERT_TRUE(containerd_->Ctr({"images", "mount", "--rm", kName, "/nowhere"}).code() !=
              absl::StatusCode::kOk);  // unpacks into overlayfs, then has no directory to mount on
  const absl::Status created =
      containerd_->Ctr({"containers", "create", "--snapshotter", "overlayfs", kName, "c1"});
  ASSERT_TRUE(created.ok()) << created;
  const auto container = client_.GetContainer("default", "c1", Soon());
  ASSERT_TRUE(container.ok()) << container.status();
  EXPECT_EQ(container->image, kName);
  EXPECT_EQ(container->snapshotter, "overlayfs");
  EXPECT_EQ(container->snapshot_key, "c1");
  EXPECT_TRUE(absl::IsNotFound(client_.GetContainer("default", "c2", Soon()).status()));
  EXPECT_TRUE(absl::IsNotFound(client_.GetContainer("default", "/a/path", Soon()).status()));
  ASSERT_TRUE(containerd_->Ctr({"containers", "rm", "c1"}).ok());
}

TEST_F(ClientTest, PreparesAndRemovesSnapshots) {
  // Nothing refers to them, and another test's removal may still be collected.
  const auto prepare = [this](const std::string& key, const std::string& parent) {
    return client_.PrepareSnapshot("default", "overlayfs", key, parent,
                                   {{"containerd.io/gc.root", "test"}}, "", Soon());
  };
  EXPECT_TRUE(prepare("k1", "").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(prepare("k1", "")));
  EXPECT_TRUE(absl::IsNotFound(prepare("k2", "no such parent")));
  EXPECT_TRUE(client_.RemoveSnapshot("default", "overlayfs", "k1", Soon()).ok());
  EXPECT_TRUE(absl::IsNotFound(client_.RemoveSnapshot("default", "overlayfs", "k1", Soon())));
}

TEST_F(ClientTest, ALeaseKeepsASnapshotFromCollection) {
  const auto collect = [this] {  // by deleting an image, synchronously
    ASSERT_TRUE(containerd_->Ctr({"images", "tag", kName, "registry.test/tag:1"}).ok());
    ASSERT_TRUE(containerd_->Ctr({"images", "rm", "--sync", "registry.test/tag:1"}).ok());
  };
  const auto remove = [this](const char* key) {
    return client_.RemoveSnapshot("default", "overlayfs", key, Soon());
  };
  ASSERT_TRUE(client_.CreateLease("default", "lease-1", absl::Minutes(1), Soon()).ok());
  EXPECT_TRUE(
      absl::IsAlreadyExists(client_.CreateLease("default", "lease-1", absl::Minutes(1), Soon())));
  for (const char* lease : {"", "lease-1"}) {
    const std::string key = fmt::format("key-{}", lease);
    ASSERT_TRUE(client_.PrepareSnapshot("default", "overlayfs", key, "", {}, lease, Soon()).ok());
  }
  collect();
  EXPECT_TRUE(absl::IsNotFound(remove("key-")));
  EXPECT_TRUE(client_.DeleteLease("default", "lease-1", Soon()).ok());
  EXPECT_TRUE(absl::IsNotFound(client_.DeleteLease("default", "lease-1", Soon())));
}

TEST_F(ClientTest, ADeadlineLongPastIsOver) {
  for (const absl::Time past : {absl::InfinitePast(), absl::Now() - absl::Seconds(1)})
    EXPECT_TRUE(absl::IsDeadlineExceeded(client_.ListNamespaces(past).status()));
}

TEST(ClientWithoutContainerdTest, IsUnavailableAtOnceAndNamesTheSocket) {
  Client client("/tmp/kapsule-no-such.sock");
  const absl::Time start = absl::Now();
  const absl::Status status = client.ListImages("default", Soon()).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("/tmp/kapsule-no-such.sock"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

TEST(ClientRestartTest, ReachesAContainerdThatCameBack) {
  auto containerd = TestContainerd::Start();
  ASSERT_TRUE(containerd.ok()) << containerd.status();
  Client client((*containerd)->socket());
  ASSERT_TRUE(client.ListNamespaces(Soon()).ok());
  (*containerd)->Stop();
  EXPECT_TRUE(absl::IsUnavailable(client.ListNamespaces(Soon()).status()));
  ASSERT_TRUE((*containerd)->Restart().ok());
  absl::Status status;
  for (int i = 0; i < 300 && !(status = client.ListNamespaces(Soon()).status()).ok(); ++i)
    absl::SleepFor(absl::Milliseconds(100));
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace kapsule::containerd
