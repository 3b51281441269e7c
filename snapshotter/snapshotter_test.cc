#include "snapshotter/snapshotter.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "core/oci/annotations.h"
#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using testing::UnorderedElementsAre;

// Writes down what it is asked, and answers what the test says.
class RecordingBackend final : public LayerBackend {
 public:
  explicit RecordingBackend(const TempDir& root) : root_(root) {}

  absl::Status PreRegister(const std::string& ns, const oci::Digest& chain_id) override {
    Note("preregister " + ns + " " + chain_id.hex().substr(0, 4));
    return answer;
  }
  void Add(const ModelLayer& layer) override {
    Note(fmt::format("add {} {}", layer.ns, layer.depth));
  }
  absl::Status Await(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                     absl::Time) override {
    Note(fmt::format("await {} {} {}", key.ns, key.client, chain.size()));
    return answer;
  }
  void Remove(const ModelLayer& layer) override {
    const bool there = std::filesystem::exists(root_ / fmt::format("l/{}/fs", layer.id));
    Note(fmt::format("remove {}{}", layer.depth, there ? "" : ", but its directory has gone"));
  }
  std::vector<std::string> Calls() {
    absl::MutexLock lock(&mu_);
    return std::exchange(calls_, {});
  }

  absl::Status answer;

 private:
  void Note(std::string call) {
    absl::MutexLock lock(&mu_);
    calls_.push_back(std::move(call));
  }
  const TempDir& root_;
  absl::Mutex mu_;
  std::vector<std::string> calls_ ABSL_GUARDED_BY(mu_);
};

const oci::Digest kChain0 = oci::Digest::Of(AsBytes("chain 0"));
const oci::Digest kChain1 = oci::Digest::Of(AsBytes("chain 1"));

Labels LayerLabels(const oci::Digest& chain, std::string_view blob) {
  const oci::LayerLabel label{oci::Digest::Of(AsBytes(blob)), 1000, oci::Digest::Of({}), "model"};
  return {{kSnapshotRefLabel, chain.text()}, {oci::kLayerLabel, *label.ToJson()}};
}

std::string ExtractKey(int number, const oci::Digest& chain) {
  return fmt::format("default/{}/extract-123-ab_- {}", number, chain.text());
}

class SnapshotterTest : public testing::Test {
 protected:
  void SetUp() override { Reopen(); }
  void Reopen() {
    snapshotter_.reset();
    auto store = MetadataStore::Open(root_ / "metadata.db");
    ASSERT_TRUE(store.ok()) << store.status();
    auto snapshotter =
        Snapshotter::Open(root_.path(), *std::move(store), backend_, absl::Seconds(1));
    ASSERT_TRUE(snapshotter.ok()) << snapshotter.status();
    snapshotter_ = *std::move(snapshotter);
  }
  // A committed snapshot with a file of its own name.
  void MakeLayer(const std::string& name, const std::string& parent) {
    const auto mounts = snapshotter_->Prepare("key-" + name, parent, {});
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    {
      const Mounted mounted(mounts->front(), work_ / "layer");
      ASSERT_TRUE(Write(mounted / name, "in " + name));
      ASSERT_TRUE(Write(mounted / "top", name));
    }
    ASSERT_TRUE(snapshotter_->Commit(name, "key-" + name, {}).ok());
  }
  // Two Kapsule layers, the upper one named by kChain1.
  void MakeModel() {
    ASSERT_EQ(PrepareLayer("", kChain0, "blob 0").code(), absl::StatusCode::kAlreadyExists);
    ASSERT_EQ(PrepareLayer(kChain0.text(), kChain1, "blob 1").code(),
              absl::StatusCode::kAlreadyExists);
    backend_.Calls();
  }
  absl::Status PrepareLayer(const std::string& parent, const oci::Digest& chain,
                            std::string_view blob) {
    return snapshotter_->Prepare(ExtractKey(++number_, chain), parent, LayerLabels(chain, blob))
        .status();
  }
  absl::Status PrepareStatus(const std::string& key, const std::string& parent) {
    return snapshotter_->Prepare(key, parent, {}).status();
  }
  std::vector<std::string> Directories() {
    snapshotter_->Cleanup();
    return NamesOf(root_ / "l");
  }
  std::string IdOf(const std::string& key) {
    return std::to_string((*MetadataStore::Open(root_ / "metadata.db"))->Get(key)->id);
  }

  TempDir root_, work_;
  RecordingBackend backend_{root_};
  std::unique_ptr<Snapshotter> snapshotter_;
  int number_ = 0;
};

TEST_F(SnapshotterTest, AChildSeesItsParentsAndChangesNothingInThem) {
  MakeLayer("a", "");
  MakeLayer("b", "a");
  const auto mounts = snapshotter_->Prepare("c1", "b", {});
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  {
    const Mounted mounted(mounts->front(), work_ / "c1");
    EXPECT_EQ(Read(mounted / "a"), "in a");
    EXPECT_EQ(Read(mounted / "b"), "in b");
    EXPECT_EQ(Read(mounted / "top"), "b");
    EXPECT_TRUE(Write(mounted / "top", "c"));
    EXPECT_TRUE(std::filesystem::remove(mounted / "a"));
  }
  const auto view = snapshotter_->View("v", "b", {});
  ASSERT_TRUE(view.ok()) << view.status();
  const Mounted mounted(view->front(), work_ / "v");
  EXPECT_EQ(Read(mounted / "a"), "in a");
  EXPECT_EQ(Read(mounted / "top"), "b");
}

TEST_F(SnapshotterTest, ViewsAreReadOnly) {
  MakeLayer("a", "");
  MakeLayer("b", "a");
  for (const std::string parent : {"", "a", "b"}) {
    const auto view = snapshotter_->View("view of " + parent, parent, {});
    ASSERT_TRUE(view.ok()) << view.status();
    const Mounted mounted(view->front(), work_ / "v");
    EXPECT_FALSE(Write(mounted / "x", "x")) << parent;
  }
}

TEST_F(SnapshotterTest, MountsAnswersWhatPrepareAnswered) {
  MakeLayer("a", "");
  const auto mounts = snapshotter_->Prepare("c", "a", {});
  Reopen();
  EXPECT_EQ(snapshotter_->Mounts("c")->front().options, mounts->front().options);
  EXPECT_EQ(snapshotter_->Mounts("a").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(snapshotter_->Mounts("none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SnapshotterTest, ErrorsHaveContainerdsCodes) {
  MakeLayer("a", "");
  ASSERT_TRUE(PrepareStatus("c", "a").ok());
  EXPECT_EQ(PrepareStatus("c", "a").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(snapshotter_->View("c", "a", {}).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(PrepareStatus("x", "none").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(PrepareStatus("x", "c").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PrepareStatus("", "a").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(snapshotter_->Commit("a", "c", {}).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(snapshotter_->Commit("b", "a", {}).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(snapshotter_->Commit("b", "none", {}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(snapshotter_->Commit("", "c", {}).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(snapshotter_->View("v", "a", {}).ok());
  EXPECT_EQ(snapshotter_->Commit("b", "v", {}).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(snapshotter_->Stat("none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(snapshotter_->GetUsage("none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(snapshotter_->List({"name="}).status().code(), absl::StatusCode::kInvalidArgument);
  const absl::Status removed = snapshotter_->Remove("a");
  EXPECT_EQ(removed.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(removed), HasSubstr("remove"));
}

TEST_F(SnapshotterTest, TheRootDirectoryKeepsItsOwner) {
  const auto mounts = snapshotter_->Prepare("key", "", {});
  ASSERT_EQ(chown(mounts->front().source.c_str(), 12, 34), 0);
  ASSERT_TRUE(snapshotter_->Commit("a", "key", {}).ok());
  ASSERT_TRUE(PrepareStatus("c", "a").ok());
  struct stat st;
  ASSERT_EQ(stat((root_ / ("l/" + IdOf("c") + "/fs")).c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 12u);
  EXPECT_EQ(st.st_gid, 34u);
  EXPECT_EQ(st.st_mode & 0777, 0755u);
}

TEST_F(SnapshotterTest, WhatIsBelowIsMappedForAUserNamespace) {
  const Labels labels{{"containerd.io/snapshot/uidmapping", "0:65536:9"},
                      {"containerd.io/snapshot/gidmapping", "0:65537:9"}};
  MakeLayer("a", "");
  MakeModel();
  MakeLayer("b", kChain1.text());
  for (const std::string parent : {"a", "b"}) {
    const std::string key = "k8s.io/5/on-" + parent;
    const auto mounts = snapshotter_->Prepare(key, parent, labels);
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    EXPECT_THAT(mounts->front().options,
                AllOf(Contains("uidmap=0:65536:9"), Contains("gidmap=0:65537:9")));
    EXPECT_EQ(snapshotter_->Mounts(key)->front().options, mounts->front().options);
    struct stat st;
    ASSERT_EQ(stat((root_ / ("l/" + IdOf(key) + "/fs")).c_str(), &st), 0);
    EXPECT_EQ(st.st_uid, 65536u);
    EXPECT_EQ(st.st_gid, 65537u);
  }
  // containerd copies the mount of l/, not the models' mounts that are in it.
  const std::string l = (root_ / "l").string();
  EXPECT_THAT(snapshotter_->Mounts("k8s.io/5/on-b")->front().options,
              Contains(fmt::format("lowerdir={0}/{1}/fs:{0}/{2}/all/{3}/fs:{0}/{2}/all/{4}/fs", l,
                                   IdOf("b"), IdOf("k8s.io/5/on-b"), IdOf(kChain1.text()),
                                   IdOf(kChain0.text()))));
  EXPECT_EQ(std::filesystem::read_symlink(root_ / ("l/" + IdOf("k8s.io/5/on-b") + "/all")), l);
  EXPECT_THAT(snapshotter_->Prepare("k8s.io/5/model", kChain1.text(), labels)->front().options,
              Not(Contains(StartsWith("uidmap="))));
  // containerd without our capability makes such a layer first.
  ASSERT_EQ(chown((root_ / ("l/" + IdOf("a") + "/fs")).c_str(), 65536, 65537), 0);
  EXPECT_THAT(snapshotter_->Prepare("k8s.io/5/changed", "a", labels)->front().options,
              Not(Contains(StartsWith("uidmap="))));
  EXPECT_EQ(snapshotter_->Prepare("k8s.io/5/bad", "a", {*labels.begin()}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SnapshotterTest, UsageOfACommittedSnapshotIsWhatItWasAtCommit) {
  const auto mounts = snapshotter_->Prepare("key", "", {});
  ASSERT_TRUE(Write(mounts->front().source + "/file", std::string(50'000, 'x')));
  EXPECT_GE(snapshotter_->GetUsage("key")->size, 50'000u);
  EXPECT_EQ(snapshotter_->GetUsage("key")->inodes, 2u);
  ASSERT_TRUE(snapshotter_->Commit("a", "key", {}).ok());
  const Usage usage = *snapshotter_->GetUsage("a");
  EXPECT_GE(usage.size, 50'000u);
  EXPECT_EQ(usage.inodes, 2u);
  ASSERT_TRUE(std::filesystem::remove(mounts->front().source + "/file"));
  EXPECT_EQ(*snapshotter_->GetUsage("a"), usage);
  ASSERT_TRUE(snapshotter_->View("v", "a", {}).ok());
  EXPECT_EQ(*snapshotter_->GetUsage("v"), Usage{});
}

TEST_F(SnapshotterTest, ACrashLeavesOnlyWhatIsRecorded) {
  MakeLayer("a", "");
  const std::string kept = IdOf("a");
  const auto folder = root_ / "l";
  std::filesystem::create_directories(folder / "new-x/fs");
  std::filesystem::create_directories(folder / "rm-1-2/fs/tree");
  std::filesystem::create_directories(folder / "4711/fs");
  Reopen();
  EXPECT_THAT(Directories(), ElementsAre(kept));
  EXPECT_EQ(Read(folder / kept / "fs/a"), "in a");
}

TEST_F(SnapshotterTest, RemovedSnapshotsLeaveNothing) {
  MakeLayer("a", "");
  ASSERT_TRUE(PrepareStatus("c", "a").ok());
  ASSERT_TRUE(snapshotter_->Remove("c").ok());
  ASSERT_TRUE(snapshotter_->Remove("a").ok());
  EXPECT_THAT(Directories(), UnorderedElementsAre());
  EXPECT_TRUE(snapshotter_->List({})->empty());
  EXPECT_THAT(backend_.Calls(), UnorderedElementsAre());
}

TEST_F(SnapshotterTest, AHundredPreparesAtOnce) {
  MakeLayer("a", "");
  std::atomic<int> made = 0, refused = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 100; ++i)
    threads.emplace_back([&, i] {
      EXPECT_TRUE(PrepareStatus("own-" + std::to_string(i), "a").ok());
      const absl::Status status = PrepareStatus("shared", "a");
      ++(status.ok() ? made : refused);
      EXPECT_TRUE(status.ok() || absl::IsAlreadyExists(status)) << status;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(made, 1);
  EXPECT_EQ(refused, 99);
  EXPECT_EQ(Directories().size(), 102u);
  const auto mounts = snapshotter_->Mounts("own-42");
  const Mounted mounted(mounts->front(), work_ / "m");
  EXPECT_EQ(Read(mounted / "a"), "in a");
}

TEST_F(SnapshotterTest, ALabelledPrepareMakesTheLayerAndContainerdFindsIt) {
  EXPECT_EQ(PrepareLayer("", kChain0, "blob 0").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(backend_.Calls(), ElementsAre("add default 0"));
  EXPECT_EQ(PrepareLayer(kChain0.text(), kChain1, "blob 1").code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(backend_.Calls(), ElementsAre("add default 1"));
  const auto found = snapshotter_->List({fmt::format(
      R"(labels."containerd.io/snapshot.ref"=={},parent=="{}")", kChain1.text(), kChain0.text())});
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 1u);
  EXPECT_EQ(found->front().name, kChain1.text());
  EXPECT_EQ(found->front().kind, Kind::kCommitted);
  EXPECT_EQ(found->front().labels, LayerLabels(kChain1, "blob 1"));
  EXPECT_EQ(snapshotter_->Stat(kChain1.text())->parent, kChain0.text());
  EXPECT_EQ(snapshotter_->List({})->size(), 2u);  // nothing under the extraction's key
  EXPECT_TRUE(std::filesystem::is_empty(root_ / ("l/" + IdOf(kChain1.text()) + "/fs")));
}

TEST_F(SnapshotterTest, ALayerIsMadeOnceHoweverManyAsk) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 40; ++i)
    threads.emplace_back([this, i] {
      EXPECT_EQ(snapshotter_
                    ->Prepare(fmt::format("ns{}/1/extract-1-a {}", i, kChain0.text()), "",
                              LayerLabels(kChain0, "blob"))
                    .status()
                    .code(),
                absl::StatusCode::kAlreadyExists);
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(snapshotter_->List({})->size(), 1u);
  EXPECT_EQ(backend_.Calls().size(), 1u);
  EXPECT_EQ(Directories().size(), 1u);
}

TEST_F(SnapshotterTest, ALayerOfTheSameChainButAnotherBlobIsRefused) {
  MakeModel();
  const absl::Status blob = PrepareLayer("", kChain0, "another blob");
  EXPECT_EQ(blob.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(blob), HasSubstr("remove the other image first"));
  MakeLayer("a", "");
  EXPECT_EQ(PrepareLayer("a", kChain1, "blob 1").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(backend_.Calls(), UnorderedElementsAre());
}

TEST_F(SnapshotterTest, MalformedLabelsMakeNothing) {
  Labels labels = LayerLabels(kChain0, "blob");
  const std::string good = labels[oci::kLayerLabel];
  std::vector<std::string> values = {"{}", "null", good + "x"};
  for (size_t n = 0; n < good.size(); n += 5) values.push_back(good.substr(0, n));
  for (const std::string& value : values) {
    labels[oci::kLayerLabel] = value;
    EXPECT_EQ(snapshotter_->Prepare("default/1/x", "", labels).status().code(),
              absl::StatusCode::kInvalidArgument)
        << value;
  }
  labels = LayerLabels(kChain0, "blob");
  for (const char* ref : {"", "sha256:12", "sha512:", "../../etc"}) {
    labels[kSnapshotRefLabel] = ref;
    EXPECT_EQ(snapshotter_->Prepare("default/1/x", "", labels).status().code(),
              absl::StatusCode::kInvalidArgument)
        << ref;
  }
  labels = LayerLabels(kChain0, "blob");
  EXPECT_EQ(snapshotter_->Prepare("default/1/x", "none", labels).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(snapshotter_->List({})->empty());
  EXPECT_THAT(Directories(), UnorderedElementsAre());
  EXPECT_THAT(backend_.Calls(), UnorderedElementsAre());
}

TEST_F(SnapshotterTest, UnpackingWithoutLabelsPreRegistersAndGoesOnWhateverComes) {
  const std::string found = "preregister default " + kChain0.hex().substr(0, 4);
  EXPECT_TRUE(PrepareStatus(ExtractKey(1, kChain0), "").ok());
  EXPECT_THAT(backend_.Calls(), ElementsAre(found));
  backend_.answer = Unavailable("containerd is busy");
  EXPECT_TRUE(PrepareStatus(ExtractKey(2, kChain0), "").ok());
  EXPECT_THAT(backend_.Calls(), ElementsAre(found));
}

TEST_F(SnapshotterTest, AnOrdinaryLayerWithARefIsUnpackedWithoutAskingAnyone) {
  EXPECT_TRUE(
      snapshotter_->Prepare(ExtractKey(1, kChain0), "", {{kSnapshotRefLabel, kChain0.text()}})
          .ok());
  EXPECT_THAT(backend_.Calls(), UnorderedElementsAre());
}

TEST_F(SnapshotterTest, UnpackingAboveAModelNeverWaits) {
  MakeModel();
  backend_.answer = Unavailable("no key yet");
  const std::string key = ExtractKey(9, oci::Digest::Of(AsBytes("base")));
  EXPECT_TRUE(snapshotter_->Prepare(key, kChain1.text(), {{kSnapshotRefLabel, "x"}}).ok());
  EXPECT_TRUE(snapshotter_->Mounts(key).ok());
  EXPECT_TRUE(snapshotter_->Commit("default/10/base", key, {}).ok());
  EXPECT_THAT(backend_.Calls(), UnorderedElementsAre());
}

// Anybody may choose such a key: what is mounted for it holds no model.
TEST_F(SnapshotterTest, AKeyThatUnpacksShowsNoModel) {
  MakeModel();
  backend_.answer = PermissionDenied("no key");
  const std::string key = ExtractKey(9, oci::Digest::Of(AsBytes("anything")));
  const auto mounts = snapshotter_->Prepare(key, kChain1.text(), {});
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  const std::string nothing = fmt::format("lowerdir={}/empty", root_.path().string());
  EXPECT_EQ(mounts->front().type, "overlay");
  EXPECT_THAT(mounts->front().options, Contains(nothing));
  EXPECT_THAT(snapshotter_->Mounts(key)->front().options, Contains(nothing));
  const std::string other = ExtractKey(10, oci::Digest::Of(AsBytes("other")));
  EXPECT_EQ(snapshotter_->View(other, kChain1.text(), {}).status(), backend_.answer);
}

TEST_F(SnapshotterTest, AContainerWaitsForItsModelAndMountsIt) {
  MakeModel();
  const auto mounts = snapshotter_->Prepare("k8s.io/5/c1", kChain1.text(), {});
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_THAT(backend_.Calls(), ElementsAre("await k8s.io c1 2"));
  EXPECT_THAT(mounts->front().options,
              Contains(fmt::format("lowerdir={0}/l/{1}/fs:{0}/l/{2}/fs", root_.path().string(),
                                   IdOf(kChain1.text()), IdOf(kChain0.text()))));
  EXPECT_TRUE(snapshotter_->Mounts("k8s.io/5/c1").ok());
  EXPECT_THAT(backend_.Calls(), ElementsAre("await k8s.io c1 2"));
  EXPECT_TRUE(snapshotter_->View("default/6//mnt", kChain0.text(), {}).ok());
  EXPECT_THAT(backend_.Calls(), ElementsAre("await default /mnt 1"));
}

TEST_F(SnapshotterTest, AContainerThatMayNotLeavesNothing) {
  MakeModel();
  const size_t before = Directories().size();
  for (const absl::Status& answer :
       {PermissionDenied("no key"), Unavailable("keyprovider is down"), DataLoss("bad chunk")}) {
    backend_.answer = answer;
    EXPECT_EQ(PrepareStatus("k8s.io/5/c1", kChain1.text()), answer);
    EXPECT_EQ(snapshotter_->View("k8s.io/5/v", kChain1.text(), {}).status(), answer);
  }
  EXPECT_EQ(snapshotter_->List({})->size(), 2u);
  EXPECT_EQ(Directories().size(), before);
  backend_.answer = absl::OkStatus();
  ASSERT_TRUE(PrepareStatus("k8s.io/5/c1", kChain1.text()).ok());
  backend_.answer = PermissionDenied("no key any more");
  EXPECT_EQ(snapshotter_->Mounts("k8s.io/5/c1").status(), backend_.answer);
  EXPECT_TRUE(snapshotter_->Stat("k8s.io/5/c1").ok());
}

TEST_F(SnapshotterTest, ImageVolumesOverAModelHaveNoUpperDirectory) {
  MakeModel();
  const std::string prefix =
      "k8s.io/5//run/containerd/io.containerd.grpc.v1.cri/image-volumes/0123/";
  const auto one = snapshotter_->Prepare(prefix + "one", kChain0.text(), {});
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->front().type, "bind");
  EXPECT_THAT(one->front().options, ElementsAre("ro", "rbind"));
  const auto two = snapshotter_->Prepare(prefix + "two", kChain1.text(), {});
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->front().type, "overlay");
  EXPECT_THAT(two->front().options, Not(Contains(StartsWith("upperdir="))));
  EXPECT_EQ(snapshotter_->Mounts(prefix + "two")->front().options, two->front().options);
  // containerd mounts it for writing and adds an option; the kernel takes that.
  Mount mount = two->front();
  mount.options.push_back("volatile");
  const Mounted mounted(mount, work_ / "volume");
  EXPECT_FALSE(Write(mounted / "x", "x"));

  MakeLayer("a", "");
  EXPECT_THAT(snapshotter_->Prepare(prefix + "ordinary", "a", {})->front().options,
              Contains(StartsWith("upperdir=")));
}

TEST_F(SnapshotterTest, RemovingALayerUnmountsItBeforeItsDirectoryGoes) {
  MakeModel();
  EXPECT_EQ(snapshotter_->Remove(kChain0.text()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(backend_.Calls(), UnorderedElementsAre());
  EXPECT_TRUE(snapshotter_->Remove(kChain1.text()).ok());
  EXPECT_TRUE(snapshotter_->Remove(kChain0.text()).ok());
  EXPECT_THAT(backend_.Calls(), ElementsAre("remove 1", "remove 0"));
  EXPECT_THAT(Directories(), UnorderedElementsAre());
}

}  // namespace
}  // namespace kapsule::snapshotter
