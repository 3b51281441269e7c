#include "snapshotter/layer_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "snapshotter/test_layer_manager.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using containerd::OneFileTar;
using containerd::TestImage;
using containerd::TestLayer;
using ::testing::HasSubstr;

TEST_F(LayerManagerTest, MountsAndRemovesTheLayersOfAChain) {
  const TestImage image = Import("default", kName, "key");
  const auto chain = Record(image);
  ASSERT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
  for (const ModelLayer& layer : chain) {
    EXPECT_EQ(ReadFile(Target(layer) / "hello", 100).value(), "world");
    EXPECT_EQ(fs::hard_link_count(Pin(layer.label.digest)), 2u);
    manager_->Remove(layer);
    EXPECT_FALSE(IsErofsMount(Target(layer)));
  }
  Eventually([&] { return plane_.open().empty() && fs::is_empty(config_.root / "blobs"); });
}

TEST_F(LayerManagerTest, AChainThatIsRemovedWhileAContainerIsMadeOnItIsNotOpened) {
  const auto chain = Record(Import("default", kName, "key"));
  {
    const absl::MutexLock lock(&mu_);
    unrecorded_.insert(chain[1].id);
  }
  manager_->Remove(chain[1]);
  const absl::Status status = manager_->Await({"default", "c"}, chain, Soon());
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("has been removed"));
  Eventually([&] { return manager_->LayerStates()["mounted"] == 1; });
  EXPECT_TRUE(IsErofsMount(Target(chain[0])));
  EXPECT_FALSE(IsErofsMount(Target(chain[1])));
  const auto states = manager_->LayerStates();
  EXPECT_EQ(states.at("mounted"), 1u);
  EXPECT_EQ(states.at("failed") + states.at("waiting") + states.at("opening"), 0u);
}

TEST_F(LayerManagerTest, FindsTheManifestInAnyNamespaceAfterARestart) {
  const TestImage image = Import("default", kName, "key");
  const auto chain = Record(image);
  ASSERT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
  manager_.reset();
  EXPECT_FALSE(IsErofsMount(Target(chain[1])));
  // A mount that a killed run left behind.
  ASSERT_TRUE(ErofsMounter().Mount(fs::path(dir_) / "view", Target(chain[0])).ok());
  StartManager(chain);
  ASSERT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
  EXPECT_TRUE(IsErofsMount(Target(chain[0])));
  ASSERT_EQ(UnmountErofs(Target(chain[0])), absl::OkStatus());
  EXPECT_FALSE(IsErofsMount(Target(chain[0])));  // it was mounted once
}

TEST_F(LayerManagerTest, KeepsMountsOfAnEarlierRunWhoseDataPlaneServesOn) {
  const TestImage image = Import("default", kName, "key");
  const auto chain = Record(image);
  ASSERT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
  struct stat before, after;
  ASSERT_EQ(stat(Target(chain[1]).c_str(), &before), 0);
  manager_->Leave();
  manager_.reset();
  EXPECT_TRUE(IsErofsMount(Target(chain[1])));

  std::vector<std::string> views;
  for (const oci::Digest& digest : plane_.open()) views.push_back(digest.hex());
  StartManager(chain, views);
  EXPECT_TRUE(IsErofsMount(Target(chain[1])));  // at once
  ASSERT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
  ASSERT_EQ(stat(Target(chain[1]).c_str(), &after), 0);
  EXPECT_EQ(before.st_dev, after.st_dev);
  EXPECT_TRUE(manager_->AnyMounted());
  for (const ModelLayer& layer : chain) {
    manager_->Remove(layer);
    EXPECT_FALSE(IsErofsMount(Target(layer)));  // it was mounted once
  }
  Eventually([&] { return plane_.open().empty(); });
  EXPECT_FALSE(manager_->AnyMounted());
}

TEST_F(LayerManagerTest, OfAnEarlierRunOnlyWhatAKnownLayerNeedsIsKept) {
  const TestImage image = Import("default", kName, "key");
  const auto chain = Record(image);
  ASSERT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
  manager_->Leave();
  manager_.reset();
  // Snapshot 1 was removed while nobody looked; so was one in the middle of that.
  const fs::path view = fs::path(dir_) / "view";
  const fs::path removed = config_.root / "l/rm-9/fs", twice = Target(chain[1]);
  ASSERT_EQ(MakeDirs(removed, 0755), absl::OkStatus());
  for (const fs::path& target : {removed, twice})
    ASSERT_EQ(ErofsMounter().Mount(view, target), absl::OkStatus());
  std::vector<std::string> views;
  for (const oci::Digest& digest : plane_.open()) views.push_back(digest.hex());
  StartManager({chain[1]}, views);
  EXPECT_FALSE(IsErofsMount(removed));
  EXPECT_FALSE(IsErofsMount(Target(chain[0])));
  EXPECT_TRUE(IsErofsMount(twice));
  // Found as it is, and not mounted once more when it has been unmounted below.
  Eventually([&] { return manager_->LayerStates()["mounted"] == 1; });
  EXPECT_EQ(UnmountErofs(twice), absl::OkStatus());
  EXPECT_FALSE(IsErofsMount(twice));
  Eventually([&] { return !plane_.open().contains(chain[0].label.digest); });
  EXPECT_TRUE(plane_.open().contains(chain[1].label.digest));
}

TEST_F(LayerManagerTest, AnAdoptedMountThatIsNeverOpenedAgainGoesWithTheManager) {
  const TestImage image = Import("default", kName, "key");
  const auto chain = Record(image);
  ASSERT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
  manager_->Leave();
  manager_.reset();
  plane_.SetAway(true);
  // The view of layer 0 is lost: what is mounted over it would fail for ever.
  StartManager(chain, std::vector<std::string>{chain[1].label.digest.hex()});
  EXPECT_FALSE(IsErofsMount(Target(chain[0])));
  EXPECT_TRUE(IsErofsMount(Target(chain[1])));
  manager_.reset();
  EXPECT_FALSE(IsErofsMount(Target(chain[1])));
}

TEST_F(LayerManagerTest, AViewThatCouldNotBeClosedIsClosedLater) {
  const TestImage image = Import("default", kName, "key");
  const auto chain = Record(image);
  ASSERT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
  plane_.SetAway(true);
  for (const ModelLayer& layer : chain) manager_->Remove(layer);
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_EQ(plane_.open().size(), 2u);
  plane_.SetAway(false);
  Eventually([&] { return plane_.open().empty() && fs::is_empty(config_.root / "blobs"); });
}

TEST_F(LayerManagerTest, TellsWhyALayerCannotBeOpened) {
  const TestImage image = Import("default", kName, "none");
  const auto chain = Record(image);
  const absl::Status status = manager_->Await({"default", "c"}, chain, Soon());
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_EQ(Message(status), fmt::format("image {}, layer 1 ({}): no key for it on this node",
                                         kName, image.layers[1].digest.text()));
  Eventually([&] { return opened_ == 1; });  // the plain one below
  EXPECT_GE(not_opened_, 1);
  EXPECT_EQ(manager_->LayerStates()["failed"], 1u);
}

TEST_F(LayerManagerTest, AnImageWithoutAKeyDoesNotHinderOneThatHasIt) {
  const TestImage image = Import("default", "r.test/acme/a:1", "none");
  Import("other", kName, "key");
  const auto chain = Record(image);
  // The layer is opened with the other's key, which lets nobody else in.
  const absl::Status status = manager_->Await({"default", "c"}, chain, Soon());
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_EQ(opened_, 2);
  EXPECT_EQ(refused_, 1);
  EXPECT_THAT(Message(status), HasSubstr("image r.test/acme/a:1, layer 1"));
  EXPECT_TRUE(IsErofsMount(Target(chain[1])));
  EXPECT_EQ(manager_->Await({"other", "c"}, chain, Soon()), absl::OkStatus());
  Import("third", "r.test/acme/b:1", "same key");
  EXPECT_EQ(manager_->Await({"third", "c"}, chain, Soon()), absl::OkStatus());
}

TEST_F(LayerManagerTest, APlainLayerThatIsNotItsDiffIdIsNeverOpened) {
  const TestImage victim = Import("default", kName, "key");
  const std::string tar = OneFileTar("evil", "bytes");
  const auto squatter = ImportImage(
      *containerd_, "default", "r.test/evil/squatter:1",
      {Labelled({.bytes = OneFileTar("skeleton", "ciphertext")}),
       Labelled({.bytes = tar, .diff_id = oci::Digest::Of(AsBytes("plaintext of ciphertext"))})});
  ASSERT_TRUE(squatter.ok()) << squatter.status();
  ASSERT_EQ(squatter->chain_ids, victim.chain_ids);
  // As if the squatter had been pulled first, with labels.
  const auto chain = Record(*squatter);
  const absl::Status status = manager_->Await({"default", "c"}, chain, Soon());
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("image r.test/evil/squatter:1, layer 1"));
  EXPECT_THAT(Message(status), HasSubstr("not what its diff_id names"));
  EXPECT_FALSE(plane_.open().contains(squatter->layers[1].digest));
  EXPECT_FALSE(IsErofsMount(Target(chain[1])));
}

TEST_F(LayerManagerTest, AViewIsMountedInItsFolderThoughThatIsRenamedMeanwhile) {
  const auto chain = Record(Import("default", kName, "key"));
  const fs::path removed = config_.root / "l/rm-1";
  plane_.SetOnOpen([&] { fs::rename(Target(chain[0]).parent_path(), removed); });
  EXPECT_EQ(manager_->Await({"default", "c"}, {chain[0]}, Soon()), absl::OkStatus());
  EXPECT_TRUE(IsErofsMount(removed / "fs"));
  EXPECT_EQ(UnmountErofs(removed / "fs"), absl::OkStatus());
}

TEST_F(LayerManagerTest, ANamespaceThatCannotBeAskedDoesNotHinderTheOthers) {
  const TestImage image = Import("default", kName, "key");
  auto chain = Record(image);
  for (ModelLayer& layer : chain) layer.ns = "no namespace is called / so";
  EXPECT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
}

TEST_F(LayerManagerTest, TheNamespaceThatMadeALayerIsAskedFirst) {
  Import("default", kName, "none");
  auto chain = Record(Import("other", kName, "key"));
  for (ModelLayer& layer : chain) layer.ns = "other";
  EXPECT_EQ(manager_->Await({"other", "c"}, chain, Soon()), absl::OkStatus());
  EXPECT_EQ(plane_.refusals(), 0);
}

TEST_F(LayerManagerTest, WaitsForABlobThatIsStillDownloading) {
  const TestImage image = Import("default", kName, "key");
  const auto chain = Record(image);
  const fs::path blob = config_.content_root / "blobs/sha256" / image.layers[1].digest.hex();
  fs::rename(blob, blob.string() + ".ingest");
  for (const ModelLayer& layer : chain) manager_->Add(layer);
  Eventually([&] { return manager_->LayerStates()["mounted"] == 1 && not_opened_ > 0; });
  const absl::Status status =
      manager_->Await({"default", "c"}, chain, absl::Now() + absl::Milliseconds(500));
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("layer 1"));
  EXPECT_THAT(Message(status), HasSubstr("not downloaded yet"));
  fs::rename(blob.string() + ".ingest", blob);
  EXPECT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
}

TEST_F(LayerManagerTest, WaitsForAFolderThatIsMadeAnewAfterAPowerFailure) {
  const auto chain = Record(Import("default", kName, "key"));
  const fs::path folder = Target(chain[1]).parent_path();
  fs::rename(folder, folder.string() + ".away");
  for (const ModelLayer& layer : chain) manager_->Add(layer);
  Eventually([&] { return manager_->LayerStates()["mounted"] == 1 && not_opened_ > 0; });
  fs::rename(folder.string() + ".away", folder);
  EXPECT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
}

TEST_F(LayerManagerTest, SnapshotsOfOneBlobShareItsViewUntilTheLastGoes) {
  const TestImage image = Import("default", kName, "key");
  const auto first = Record(image, 1), second = Record(image, 11);
  ASSERT_EQ(manager_->Await({"default", "c"}, first, Soon()), absl::OkStatus());
  ASSERT_EQ(manager_->Await({"default", "d"}, second, Soon()), absl::OkStatus());
  manager_->Remove(first[1]);
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_TRUE(plane_.open().contains(image.layers[1].digest));
  EXPECT_TRUE(IsErofsMount(Target(second[1])));
  manager_->Remove(second[1]);
  Eventually([&] { return !plane_.open().contains(image.layers[1].digest); });
  EXPECT_TRUE(plane_.open().contains(image.layers[0].digest));
}

TEST_F(LayerManagerTest, MountsAnewAfterTheDataPlaneDiedWithoutAskingContainerd) {
  const TestImage image = Import("default", kName, "key");
  const auto chain = Record(image);
  ASSERT_EQ(manager_->Await({"default", "c"}, chain, Soon()), absl::OkStatus());
  plane_.SetAway(true);
  manager_->OnDeath();
  for (const ModelLayer& layer : chain) EXPECT_FALSE(IsErofsMount(Target(layer)));
  const absl::Status status =
      manager_->Await({"default", "c"}, chain, absl::Now() + absl::Milliseconds(300));
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  containerd_->Stop();
  plane_.SetAway(false);
  manager_->OnRestart();
  Eventually([&] { return IsErofsMount(Target(chain[0])) && IsErofsMount(Target(chain[1])); });
  // But who may use it is asked again.
  EXPECT_TRUE(absl::IsUnavailable(manager_->Await({"default", "c"}, chain, Soon())));
}

TEST_F(LayerManagerTest, WhatASuccessorLostIsMountedAnewAndOnlyThat) {
  const TestImage image = Import("default", kName, "same key");
  const std::vector<ModelLayer> layers = Record(image);
  ASSERT_EQ(manager_->Await({"default", ""}, layers, Soon()), absl::OkStatus());
  struct stat kept, lost, now;
  ASSERT_EQ(stat(Target(layers[0]).c_str(), &kept), 0);
  const UniqueFd reader = OpenFile(Target(layers[1]), O_RDONLY | O_DIRECTORY).value();
  ASSERT_EQ(fstat(reader.get(), &lost), 0);
  std::atomic<int> opened = 0;
  plane_.SetOnOpen([&] { ++opened; });
  plane_.Lose(layers[1].label.digest);
  manager_->OnTakeover();
  Eventually([&] { return opened > 0; });
  ASSERT_EQ(manager_->Await({"default", ""}, layers, Soon()), absl::OkStatus());
  ASSERT_EQ(stat(Target(layers[1]).c_str(), &now), 0);
  EXPECT_NE(now.st_dev, lost.st_dev);
  ASSERT_EQ(stat(Target(layers[0]).c_str(), &now), 0);
  EXPECT_EQ(now.st_dev, kept.st_dev);
  EXPECT_EQ(opened, 1);
}

TEST_F(LayerManagerTest, AViewThatNoLayerNeedsIsClosedWhenItIsToldOf) {
  const TestImage image = Import("default", kName, "same key");
  const std::vector<ModelLayer> layers = Record(image);
  ASSERT_EQ(manager_->Await({"default", ""}, layers, Soon()), absl::OkStatus());
  const oci::Digest late = oci::Digest::Of(AsBytes("late"));
  plane_.Add(late);
  std::vector<std::string> views;
  for (const oci::Digest& digest : plane_.open()) views.push_back(digest.hex());
  manager_->CloseUnneeded(views);
  Eventually([&] { return !plane_.open().contains(late); });
  EXPECT_EQ(plane_.open().size(), layers.size());
}

}  // namespace
}  // namespace kapsule::snapshotter
