// The whole way of a layer with a real containerd, the real snapshots service and
// real EROFS mounts; only kapsule-fuse is stood in for, by images of mkfs.erofs.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/containerd/testing.h"
#include "core/mounts/erofs_mount.h"
#include "core/mounts/test_view.h"
#include "snapshotter/layer_backend.h"
#include "snapshotter/layer_manager.h"
#include "snapshotter/test_proxy.h"

namespace kapsule::snapshotter {

inline constexpr char kName[] = "r.test/acme/tiny:enc";
inline constexpr absl::Duration kOpenTimeout = absl::Seconds(30);

inline absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

// Opens every layer whose wrapped key is not "none", and knows one true key.
class DataPlaneStandIn {
 public:
  // `dir` holds the image "view" by the time of the first call.
  explicit DataPlaneStandIn(const std::string& dir) : dir_(dir) {}
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
  absl::StatusOr<std::filesystem::path> Open(const oci::Digest& digest, uint64_t size,
                                             bool encrypted, UniqueFd blob,
                                             const oci::Annotations& annotations) {
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
    return std::filesystem::path(dir_) / "view";
  }

  const std::string& dir_;
  absl::Mutex mu_;
  bool away_ ABSL_GUARDED_BY(mu_) = false;
  std::set<oci::Digest> open_ ABSL_GUARDED_BY(mu_);
  std::function<void()> on_open_ ABSL_GUARDED_BY(mu_);
  int refusals_ ABSL_GUARDED_BY(mu_) = 0;
};

class ManagerBackend final : public LayerBackend {
 public:
  explicit ManagerBackend(LayerManager& manager) : manager_(manager) {}
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
    auto started = containerd::TestContainerd::Start(fmt::format(
        "[proxy_plugins.kapsule]\n type = \"snapshot\"\n address = \"{}\"\n", socket().string()));
    ASSERT_TRUE(started.ok()) << started.status();
    containerd_ = *std::move(started);
    ASSERT_TRUE(MakeErofsImage(std::filesystem::path(dir_) / "view", "world").ok());
    config_.root = std::filesystem::path(dir_) / "root";
    config_.containerd_address = containerd_->socket();
    config_.content_root = containerd_->content_root();
    config_.lookup_timeout_ms = 20'000;
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

  std::filesystem::path socket() const { return std::filesystem::path(dir_) / "proxy.sock"; }
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
    backend_ = std::make_unique<ManagerBackend>(*manager_);
    auto proxy = TestProxy::Start(config_.root, socket(), *backend_, kOpenTimeout);
    ASSERT_TRUE(proxy.ok()) << proxy.status();
    proxy_ = *std::move(proxy);
    // It may have called already, and would pause before it calls again.
    ASSERT_EQ(containerd_->Restart(), absl::OkStatus());
  }

  static containerd::TestLayer Labelled(containerd::TestLayer layer) {
    const oci::Digest digest = oci::Digest::Of(AsBytes(layer.bytes));
    const oci::LayerLabel label{digest, layer.bytes.size(), layer.diff_id.value_or(digest),
                                "model"};
    layer.annotations[oci::kLayerLabel] = label.ToJson().value();
    return layer;
  }
  // A plain layer below an encrypted one.
  containerd::TestImage Import(const std::string& ns, const std::string& name,
                               const std::string& key,
                               const std::string& ciphertext = "ciphertext") {
    auto image = ImportImage(
        *containerd_, ns, name,
        {Labelled({.bytes = containerd::OneFileTar("skeleton", ciphertext)}),
         Labelled({.bytes = ciphertext,
                   .media_type = oci::kLayerTarEncryptedType,
                   .annotations = {{oci::kJweAnnotation, key}},
                   .diff_id = oci::Digest::Of(AsBytes("plaintext of " + ciphertext))})});
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *image : containerd::TestImage{};
  }
  // What the snapshotter would have recorded, with its directories.
  std::vector<ModelLayer> Record(const containerd::TestImage& image, int64_t first_id = 1) {
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
  std::filesystem::path Target(const ModelLayer& layer) const {
    return config_.root / "l" / std::to_string(layer.id) / "fs";
  }
  std::filesystem::path Pin(const oci::Digest& digest) const {
    return config_.root / "blobs" / digest.hex();
  }
  static void Eventually(const std::function<bool()>& holds) {
    for (int i = 0; i < 3000 && !holds(); ++i) absl::SleepFor(absl::Milliseconds(10));
    EXPECT_TRUE(holds());
  }

  std::string dir_ = "/tmp/kapsule-manager-XXXXXX";
  std::unique_ptr<containerd::TestContainerd> containerd_;
  Config config_;
  DataPlaneStandIn plane_{dir_};
  absl::Mutex mu_;
  std::set<int64_t> unrecorded_ ABSL_GUARDED_BY(mu_);
  std::atomic<int> opened_ = 0, not_opened_ = 0, refused_ = 0;
  std::unique_ptr<LayerManager> manager_;
  std::unique_ptr<ManagerBackend> backend_;
  std::unique_ptr<TestProxy> proxy_;
};

}  // namespace kapsule::snapshotter
