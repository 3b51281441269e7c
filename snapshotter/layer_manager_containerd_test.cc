// LayerManager where containerd itself unpacks, collects garbage and makes containers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "snapshotter/test_layer_manager.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using containerd::TestImage;
using ::testing::HasSubstr;

TEST_F(LayerManagerTest, ALabelLessUnpackOfContainerdEndsInMountedLayers) {
  StartProxy();
  const TestImage image = Import("default", kName, "key");
  // Unpacks, as ctr images pull does, then prepares the container's snapshot.
  const absl::Status created =
      containerd_->Ctr({"containers", "create", "--snapshotter", "kapsule", kName, "c1"});
  ASSERT_TRUE(created.ok()) << created;
  EXPECT_EQ(plane_.open().size(), 2u);
  const absl::Status top = containerd_->Ctr(
      {"snapshots", "--snapshotter", "kapsule", "info", image.chain_ids[1].text()});
  EXPECT_TRUE(top.ok()) << top;

  EXPECT_TRUE(containerd_->Ctr({"containers", "rm", "c1"}).ok());
  EXPECT_TRUE(containerd_->Ctr({"images", "rm", "--sync", kName}).ok());
  Eventually([&] { return plane_.open().empty() && fs::is_empty(config_.root / "blobs"); });
}

TEST_F(LayerManagerTest, GarbageCollectionDoesNotTakeLayersThatAreBeingUnpacked) {
  StartProxy();
  containerd::Client client(containerd_->socket());
  std::atomic<bool> done = false;
  std::thread collector([&] {
    // What is removed does not matter: each removal collects in all namespaces.
    while (!done) {
      const std::string key = "scratch";
      client.PrepareSnapshot("other", "overlayfs", key, "", {}, "", Soon()).IgnoreError();
      client.RemoveSnapshot("other", "overlayfs", key, Soon()).IgnoreError();
    }
  });
  Import("default", kName, "key");
  const absl::Status created =
      containerd_->Ctr({"containers", "create", "--snapshotter", "kapsule", kName, "c1"});
  EXPECT_TRUE(created.ok()) << created;
  done = true;
  collector.join();
}

TEST_F(LayerManagerTest, AnEncryptedLayerAboveAKnownOneIsRegisteredForTheNextPull) {
  StartProxy();
  const TestImage image = Import("default", kName, "key");
  const std::string chain_id = image.chain_ids[0].text();
  const auto snapshots = [this](std::vector<std::string> words) {
    words.insert(words.begin(), {"snapshots", "--snapshotter", "kapsule"});
    return containerd_->Ctr(words);
  };
  ASSERT_EQ(snapshots({"prepare", "bottom"}), absl::OkStatus());
  ASSERT_EQ(snapshots({"commit", chain_id, "bottom"}), absl::OkStatus());
  const absl::Status status = manager_->PreRegister("default", image.chain_ids[1]);
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("registered now, pull again"));
  EXPECT_EQ(containerd_->Ctr({"containers", "create", "--snapshotter", "kapsule", kName, "c1"}),
            absl::OkStatus());
  EXPECT_EQ(plane_.open(), std::set<oci::Digest>{image.layers[1].digest});
}

TEST_F(LayerManagerTest, ContainerdRefusesAContainerWhoseImageHasNoKeyAndSaysWhy) {
  StartProxy();
  Import("default", kName, "none");
  const absl::Status created =
      containerd_->Ctr({"containers", "create", "--snapshotter", "kapsule", kName, "c1"});
  EXPECT_THAT(Message(created), HasSubstr(fmt::format("image {}, layer 1", kName)));
  EXPECT_THAT(Message(created), HasSubstr("no key for it on this node"));
}

}  // namespace
}  // namespace kapsule::snapshotter
