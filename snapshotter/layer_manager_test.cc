// The whole way of a layer with a real containerd, the real snapshots service and
// real EROFS mounts; only kapsule-fuse is stood in for, by images of mkfs.erofs.
#include "snapshotter/layer_manager.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>

#include "core/containerd/testing.h"
#include "core/mounts/erofs_mount.h"
#include "core/mounts/test_view.h"
#include "snapshotter/layer_backend.h"
#include "snapshotter/test_proxy.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using containerd::OneFileTar;
using containerd::TestContainerd;
using containerd::TestImage;
using containerd::TestLayer;
using ::testing::HasSubstr;

constexpr char kName[] = "r.test/acme/tiny:enc";
constexpr absl::Duration kOpenTimeout = absl::Seconds(3);

absl::Time Soon() { return absl::Now() + absl::Seconds(5); }

// Opens every layer whose wrapped key is not "none", and knows one true key.
class StandIn {
 public:
  // `dir` holds the image "view" by the time of the first call.
  explicit StandIn(const std::string& dir) : dir_(dir) {}
  DataPlaneCalls calls() {
    return {.open =
                [this](const oci::Digest& digest, uint64_t size, bool encrypted, UniqueFd blob,
                       const oci::Annotations& annotations, absl::Time, bool) {
                  return Open(digest, size, encrypted, std::move(blob), annotations);
                },
            .authorise =
                [this](const oci::Digest& digest, const oci::Annotations& annotations, absl::Time) {
                  if (!open().contains(digest)) return absl::NotFoundError("it is not open");
                  const auto key = annotations.find(oci::kJweAnnotation);
                  return key == annotations.end() || key->second == "same key"
                             ? absl::OkStatus()
                             : PermissionDenied("it unwraps to another key");
                },
            .close = [this](const oci::Digest& digest, absl::Time) -> absl::Status {
              absl::MutexLock lock(&mu_);
              if (away_) return Unavailable("kapsule-fuse is not there");
              open_.erase(digest);
              return absl::OkStatus();
            },
            .use_local = [](const oci::Digest&, const UniqueFd&,
                            absl::Time) { return absl::OkStatus(); }};
  }
  // What an earlier run asked for.
  void Add(const oci::Digest& digest) {
    absl::MutexLock lock(&mu_);
    open_.insert(digest);
  }
  void SetAway(bool away) {
    absl::MutexLock lock(&mu_);
    away_ = away;
  }
  // What a successor does not have.
  void Lose(const oci::Digest& digest) {
    absl::MutexLock lock(&mu_);
    open_.erase(digest);
  }
  std::set<oci::Digest> open() {
    absl::MutexLock lock(&mu_);
    return open_;
  }
  // Called while a layer is being opened.
  void SetOnOpen(std::function<void()> on_open) {
    absl::MutexLock lock(&mu_);
    on_open_ = std::move(on_open);
  }
  int refusals() {
    absl::MutexLock lock(&mu_);
    return refusals_;
  }

 private:
  absl::StatusOr<fs::path> Open(const oci::Digest& digest, uint64_t size, bool encrypted,
                                UniqueFd blob, const oci::Annotations& annotations) {
    std::string bytes(AlignUp(size, 4096), '\0');
    void* aligned = aligned_alloc(4096, bytes.size());
    const ssize_t n = pread(blob.get(), aligned, bytes.size(), 0);
    bytes.assign(static_cast<const char*>(aligned), n < 0 ? 0 : static_cast<size_t>(n));
    free(aligned);
    EXPECT_EQ(oci::Digest::Of(AsBytes(bytes)), digest);
    absl::MutexLock lock(&mu_);
    if (on_open_) on_open_();
    if (away_) return Unavailable("kapsule-fuse is not there");
    if (encrypted && annotations.at(oci::kJweAnnotation) == "none") {
      ++refusals_;
      return NotFound("no key for it on this node");
    }
    open_.insert(digest);
    return fs::path(dir_) / "view";
  }

  const std::string& dir_;
  absl::Mutex mu_;
  bool away_ ABSL_GUARDED_BY(mu_) = false;
  std::set<oci::Digest> open_ ABSL_GUARDED_BY(mu_);
  std::function<void()> on_open_ ABSL_GUARDED_BY(mu_);
  int refusals_ ABSL_GUARDED_BY(mu_) = 0;
};

class Backend final : public LayerBackend {
 public:
  explicit Backend(LayerManager& manager) : manager_(manager) {}
  absl::Status PreRegister(const std::string& ns, const oci::Digest& chain_id) override {
    return manager_.PreRegister(ns, chain_id);
  }
  void Add(const ModelLayer& layer) override { manager_.Add(layer); }
  absl::Status Await(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                     absl::Time deadline) override {
    return manager_.Await(key, chain, deadline);
  }
  void Remove(const ModelLayer& layer) override { manager_.Remove(layer); }

 private:
  LayerManager& manager_;
};

class LayerManagerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
    auto started = TestContainerd::Start(fmt::format(
        "[proxy_plugins.kapsule]\n type = \"snapshot\"\n address = \"{}\"\n", socket().string()));
    ASSERT_TRUE(started.ok()) << started.status();
    containerd_ = *std::move(started);
    ASSERT_TRUE(MakeErofsImage(fs::path(dir_) / "view", "world").ok());
    config_.root = fs::path(dir_) / "root";
    config_.containerd_address = containerd_->socket();
    config_.content_root = containerd_->content_root();
    StartManager({});
  }
  void TearDown() override {
    proxy_.reset();
    backend_.reset();
    manager_.reset();
    containerd_.reset();
    // Nothing is left mounted.
    EXPECT_EQ(RemoveTree(dir_), absl::OkStatus());
  }

  fs::path socket() const { return fs::path(dir_) / "proxy.sock"; }
  // `adopted`: the views of a data plane that an earlier run left.
  void StartManager(const std::vector<ModelLayer>& layers,
                    std::optional<std::vector<std::string>> adopted = std::nullopt) {
    auto manager = LayerManager::Create(config_, layers, [this](int64_t id) {
      const absl::MutexLock lock(&mu_);
      return !unrecorded_.contains(id);
    });
    ASSERT_TRUE(manager.ok()) << manager.status();
    manager_ = *std::move(manager);
    if (adopted) {
      manager_->Adopt(*adopted);
    } else {
      manager_->OnDeath();
    }
    manager_->Run(plane_.calls(), {},
                  {.opened =
                       [this](const absl::Status& status, absl::Duration duration) {
                         EXPECT_GT(duration, absl::ZeroDuration());
                         ++(status.ok() ? opened_ : not_opened_);
                       },
                   .refused = [this](const absl::Status&) { ++refused_; }});
  }
  void StartProxy() {
    backend_ = std::make_unique<Backend>(*manager_);
    auto proxy = TestProxy::Start(config_.root, socket(), *backend_, kOpenTimeout);
    ASSERT_TRUE(proxy.ok()) << proxy.status();
    proxy_ = *std::move(proxy);
    // It may have called already, and would pause before it calls again.
    ASSERT_EQ(containerd_->Restart(), absl::OkStatus());
  }

  static TestLayer Labelled(TestLayer layer) {
    const oci::Digest digest = oci::Digest::Of(AsBytes(layer.bytes));
    const oci::LayerLabel label{digest, layer.bytes.size(), layer.diff_id.value_or(digest),
                                "model"};
    layer.annotations[oci::kLayerLabel] = label.ToJson().value();
    return layer;
  }
  // A plain layer below an encrypted one.
  TestImage Import(const std::string& ns, const std::string& name, const std::string& key,
                   const std::string& ciphertext = "ciphertext") {
    auto image = ImportImage(
        *containerd_, ns, name,
        {Labelled({.bytes = OneFileTar("skeleton", ciphertext)}),
         Labelled({.bytes = ciphertext,
                   .media_type = oci::kLayerTarEncryptedType,
                   .annotations = {{oci::kJweAnnotation, key}},
                   .diff_id = oci::Digest::Of(AsBytes("plaintext of " + ciphertext))})});
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *image : TestImage{};
  }
  // What the snapshotter would have recorded, with its directories.
  std::vector<ModelLayer> Record(const TestImage& image, int64_t first_id = 1) {
    std::vector<ModelLayer> layers;
    for (size_t i = 0; i < image.layers.size(); ++i) {
      const auto& layer = image.layers[i];
      layers.push_back({first_id + static_cast<int64_t>(i), image.chain_ids[i],
                        static_cast<uint32_t>(i),
                        oci::LayerLabel::FromJson(layer.annotations.at(oci::kLayerLabel)).value()});
      EXPECT_TRUE(MakeDirs(Target(layers.back()), 0755).ok());
    }
    return layers;
  }
  fs::path Target(const ModelLayer& layer) const {
    return config_.root / "l" / std::to_string(layer.id) / "fs";
  }
  fs::path Pin(const oci::Digest& digest) const { return config_.root / "blobs" / digest.hex(); }
  static void Eventually(const std::function<bool()>& holds) {
    for (int i = 0; i < 500 && !holds(); ++i) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_TRUE(holds());
  }

  std::string dir_ = "/tmp/kapsule-manager-XXXXXX";
  std::unique_ptr<TestContainerd> containerd_;
  Config config_;
  StandIn plane_{dir_};
  absl::Mutex mu_;
  std::set<int64_t> unrecorded_ ABSL_GUARDED_BY(mu_);
  std::atomic<int> opened_ = 0, not_opened_ = 0, refused_ = 0;
  std::unique_ptr<LayerManager> manager_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<TestProxy> proxy_;
};

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
  Eventually([&] { return IsErofsMount(Target(chain[0])); });
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
  const absl::Status status =
      manager_->Await({"default", "c"}, chain, absl::Now() + absl::Milliseconds(500));
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("layer 1"));
  EXPECT_THAT(Message(status), HasSubstr("not downloaded yet"));
  fs::rename(blob.string() + ".ingest", blob);
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
  for (int i = 0; i < 500 && opened == 0; ++i) absl::SleepFor(absl::Milliseconds(10));
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
  for (int i = 0; i < 500 && plane_.open().contains(late); ++i)
    absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(plane_.open().size(), layers.size());
  EXPECT_FALSE(plane_.open().contains(late));
}

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
