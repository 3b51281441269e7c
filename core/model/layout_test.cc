#include "core/model/layout.h"

#include <gmock/gmock.h>

namespace kapsule::model {
namespace {
using testing::Contains;
using testing::ElementsAre;
using testing::Not;

Layout LayoutOf(const std::string& host, const std::string& repository, const std::string& tag) {
  auto layout = Layout::Make({host, repository, tag, std::nullopt});
  EXPECT_TRUE(layout.ok()) << layout.status();
  return *layout;
}

TEST(LayoutTest, NamesOfATwoPartRepository) {
  const Layout layout = LayoutOf("127.0.0.1:5000", "acme/tiny", "enc");
  EXPECT_EQ(layout.ModelPath("model.gguf"), "models/tiny/model.gguf");
  EXPECT_EQ(layout.OllamaManifestPath(), "ollama/models/manifests/127.0.0.1:5000/acme/tiny/enc");
  EXPECT_EQ(layout.OllamaBlobPath(oci::Digest()),
            "ollama/models/blobs/sha256-" + std::string(64, '0'));
  EXPECT_EQ(layout.HfSnapshotPath("c0", "a/b"), "hf/hub/models--acme--tiny/snapshots/c0/a/b");
  EXPECT_EQ(layout.HfRefPath("enc"), "hf/hub/models--acme--tiny/refs/enc");
}

TEST(LayoutTest, OtherNumbersOfPartsAreMapped) {
  const Layout one = LayoutOf("localhost:5000", "tiny", "1");
  EXPECT_EQ(one.OllamaManifestPath(), "ollama/models/manifests/localhost:5000/library/tiny/1");
  EXPECT_EQ(*one.hf_repository(), "tiny");
  const Layout three = LayoutOf("ghcr.io", "org/my.team/tiny--v2", "1");
  EXPECT_EQ(three.name(), "tiny--v2");
  EXPECT_EQ(three.OllamaManifestPath(), "ollama/models/manifests/ghcr.io/org-my-team/tiny--v2/1");
  EXPECT_EQ(*three.hf_repository(), "org-my.team/tiny-v2");
}

TEST(LayoutTest, NamesThatALayoutDoesNotKnowLeaveItOut) {
  EXPECT_FALSE(LayoutOf("[::1]:5000", "a/b", "1").ollama().has_value());
  EXPECT_TRUE(LayoutOf("h", "a/b", std::string(80, 't')).ollama().has_value());
  EXPECT_FALSE(LayoutOf("h", "a/b", std::string(81, 't')).ollama().has_value());
  EXPECT_TRUE(LayoutOf("h", "a/" + std::string(94, 'b'), "1").hf_repository().has_value());
  EXPECT_FALSE(LayoutOf("h", "a/" + std::string(95, 'b'), "1").hf_repository().has_value());
  EXPECT_FALSE(Layout::Make({"h", "a/..", "1", std::nullopt}).ok());
  EXPECT_FALSE(Layout::Make({"h", "a/b", "", std::nullopt}).ok());
  EXPECT_FALSE(Layout::Make({"h", "a/b", "x/y", std::nullopt}).ok());
}

TEST(LayoutTest, TheSkeletonEndsAboveWhatDependsOnTheContent) {
  const Layout layout = LayoutOf("h", "acme/tiny", "enc");
  EXPECT_THAT(
      layout.Skeleton(true),
      ElementsAre("hf", "hf/hub", "hf/hub/models--acme--tiny", "hf/hub/models--acme--tiny/refs",
                  "hf/hub/models--acme--tiny/snapshots", "kapsule", "models", "models/tiny",
                  "ollama", "ollama/models", "ollama/models/blobs", "ollama/models/manifests",
                  "ollama/models/manifests/h", "ollama/models/manifests/h/acme",
                  "ollama/models/manifests/h/acme/tiny"));
  // An empty directory under manifests would keep Ollama from starting.
  EXPECT_THAT(layout.Skeleton(false), Not(Contains("ollama")));
}

TEST(LayoutTest, UnsafePathsAreRefused) {
  for (const char* good : {"a", "a/b.c", "..a", "a..", "\u00E9", "a b:c"})
    EXPECT_TRUE(CheckPath(good).ok()) << good;
  for (const std::string& bad :
       {std::string(), std::string("/a"), std::string("a/"), std::string("a//b"), std::string("."),
        std::string("a/../b"), std::string("a\nb"), std::string("a\0b", 3), std::string("a\x7F")})
    EXPECT_FALSE(CheckPath(bad).ok()) << bad;
  EXPECT_TRUE(CheckPath(std::string(255, 'a')).ok());
  EXPECT_FALSE(CheckPath(std::string(256, 'a')).ok());
  std::string longest;
  for (int i = 0; i < 2047; ++i) longest += "a/";
  EXPECT_TRUE(CheckPath(longest + "a").ok());
  EXPECT_FALSE(CheckPath(longest + "ab").ok());
}

TEST(LayoutTest, TheCommitFollowsNamesSizesAndSmallFiles) {
  const oci::Reference reference{"h", "acme/tiny", "enc", std::nullopt};
  const std::vector<NamedSize> weights = {{"model.gguf", 10}};
  const std::vector<NamedDigest> small = {{"config.json", oci::Digest::Of(AsBytes("x"))}};
  const std::string commit = CommitId(reference, weights, small);
  EXPECT_THAT(commit, testing::MatchesRegex("[0-9a-f]+"));
  EXPECT_EQ(commit.size(), 40U);
  EXPECT_EQ(CommitId(reference, weights, small), commit);
  EXPECT_NE(CommitId({"h", "acme/tiny", "x", std::nullopt}, weights, small), commit);
  EXPECT_NE(CommitId(reference, {{"model.gguf", 11}}, small), commit);
  EXPECT_NE(CommitId(reference, {{"m", 10}}, small), commit);
  EXPECT_NE(CommitId(reference, weights, {{"config.json", oci::Digest()}}), commit);
}

TEST(LayoutTest, ParentsStandFirst) {
  EXPECT_THAT(ParentDirectories({"a/b/c", "a/d", "e"}), ElementsAre("a", "a/b"));
}

}  // namespace
}  // namespace kapsule::model
