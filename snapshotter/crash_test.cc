// A program of its own, so that nothing but the test runs when it forks.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "core/oci/annotations.h"
#include "snapshotter/snapshotter.h"
#include "snapshotter/test_support.h"

namespace kapsule::snapshotter {
namespace {

class NoLayers final : public LayerBackend {
 public:
  absl::Status PreRegister(const std::string&, const oci::Digest&) override { return {}; }
  void Add(const ModelLayer&) override {}
  absl::Status Await(const SnapshotKey&, const std::vector<ModelLayer>&, absl::Time) override {
    return {};
  }
  void Remove(const ModelLayer&) override {}
};

std::unique_ptr<Snapshotter> OpenAt(const TempDir& root, LayerBackend& backend) {
  return *Snapshotter::Open(root.path(), *MetadataStore::Open(root / "metadata.db"), backend,
                            absl::Seconds(1));
}

// Prepares, commits and removes every other; writes the key after the answers.
[[noreturn]] void WorkUntilKilled(Snapshotter& snapshotter, int round, int answers) {
  for (int i = 0;; ++i) {
    const std::string key = fmt::format("{}-{}", round, i);
    if (!snapshotter.Prepare(key, "", {}).ok()) _exit(1);
    if (!snapshotter.Commit("c" + key, key, {}).ok()) _exit(2);
    if (i % 2 == 1 && !snapshotter.Remove("c" + key).ok()) _exit(3);
    const std::string line = key + "\n";
    if (write(answers, line.data(), line.size()) < 0) _exit(4);
  }
}

// The keys that it wrote until it was killed.
std::vector<std::string> KillAfter(const TempDir& root, int round, useconds_t microseconds) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    NoLayers backend;
    WorkUntilKilled(*OpenAt(root, backend), round, ends[1]);
  }
  close(ends[1]);
  usleep(microseconds);
  kill(child, SIGKILL);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status)) << "exit status " << WEXITSTATUS(status);
  std::string text(1 << 16, '\0');
  text.resize(static_cast<size_t>(std::max<ssize_t>(read(ends[0], text.data(), text.size()), 0)));
  close(ends[0]);
  std::vector<std::string> keys;
  std::istringstream lines(text);
  for (std::string key; std::getline(lines, key);) keys.push_back(key);
  return keys;
}

TEST(CrashTest, KilledAtAnyMomentItKeepsWhatItAnswered) {
  TempDir root;
  NoLayers backend;
  size_t answered = 0;
  // More, and longer ones, where the disk is slow.
  for (int round = 0; round < 20 || (answered <= 20 && round < 200); ++round) {
    const std::vector<std::string> keys =
        KillAfter(root, round, static_cast<useconds_t>(30'000 + 3'700 * round));
    answered += keys.size();
    const std::unique_ptr<Snapshotter> snapshotter = OpenAt(root, backend);
    for (const std::string& key : keys) {
      const bool removed = (key.back() - '0') % 2 == 1;
      EXPECT_EQ(snapshotter->Stat("c" + key).ok(), !removed) << key;
    }
    snapshotter->Cleanup();
    std::vector<std::string> recorded;
    const std::set<int64_t> ids = *(*MetadataStore::Open(root / "metadata.db"))->ListIds();
    for (const int64_t id : ids) recorded.push_back(std::to_string(id));
    EXPECT_THAT(NamesOf(root / "l"), testing::UnorderedElementsAreArray(recorded));
  }
  EXPECT_GT(answered, 20u);
}

std::string IdOf(const TempDir& root, const std::string& key) {
  return std::to_string((*MetadataStore::Open(root / "metadata.db"))->Get(key)->id);
}

// The records are synced at each answer, the directories are not.
TEST(CrashTest, DirectoriesThatAPowerFailureTookAreMadeAnewButNotWithoutTheirFiles) {
  TempDir root;
  NoLayers backend;
  std::unique_ptr<Snapshotter> snapshotter = OpenAt(root, backend);
  const std::string layer = oci::Digest::Of({}).text();
  const oci::LayerLabel label{oci::Digest::Of({}), 1000, oci::Digest::Of({}), "model"};
  ASSERT_TRUE(snapshotter->Prepare("unpacked", "", {}).ok());
  ASSERT_TRUE(snapshotter->Commit("base", "unpacked", {}).ok());
  ASSERT_TRUE(snapshotter->Prepare("unpacked", "", {}).ok());
  ASSERT_TRUE(snapshotter->Commit("lost", "unpacked", {}).ok());
  ASSERT_TRUE(absl::IsAlreadyExists(
      snapshotter
          ->Prepare("x", "base", {{kSnapshotRefLabel, layer}, {oci::kLayerLabel, *label.ToJson()}})
          .status()));
  const std::filesystem::path base = root / "l" / IdOf(root, "base") / "fs";
  ASSERT_EQ(chown(base.c_str(), 12, 34), 0);
  ASSERT_TRUE(snapshotter->Prepare("container", "base", {}).ok());
  ASSERT_TRUE(snapshotter->View("view", layer, {}).ok());
  ASSERT_TRUE(snapshotter->Prepare("of lost", "lost", {}).ok());
  snapshotter.reset();
  for (const std::string& taken : {std::string("lost"), layer, std::string("container"),
                                   std::string("view"), std::string("of lost")})
    ASSERT_TRUE(RemoveTree(root / "l" / IdOf(root, taken)).ok()) << taken;

  snapshotter = OpenAt(root, backend);
  EXPECT_THAT(NamesOf(root / "l"),
              testing::UnorderedElementsAre(IdOf(root, "base"), IdOf(root, layer),
                                            IdOf(root, "container"), IdOf(root, "view")));
  struct stat made;
  const std::filesystem::path container = root / "l" / IdOf(root, "container");
  ASSERT_EQ(stat((container / "fs").c_str(), &made), 0);
  EXPECT_EQ(made.st_uid, 12u);
  EXPECT_EQ(made.st_gid, 34u);
  { const Mounted mounted(snapshotter->Mounts("container")->front(), root / "mnt"); }
  EXPECT_TRUE(snapshotter->Remove("of lost").ok());
  EXPECT_TRUE(snapshotter->Remove("lost").ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
