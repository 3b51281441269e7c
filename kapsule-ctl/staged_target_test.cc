#include "kapsule-ctl/staged_target.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>

#include "core/content/layout_target.h"

namespace kapsule::ctl {
namespace {
namespace fs = std::filesystem;

class StagedTargetTest : public testing::Test {
 protected:
  StagedTargetTest() {
    std::string name = "/tmp/kapsule-staged-XXXXXX";
    folder_ = mkdtemp(name.data());
  }
  ~StagedTargetTest() override { fs::remove_all(folder_); }

  std::unique_ptr<StagedTarget> Open() {
    auto layout = content::LayoutTarget::Open(folder_ / "layout", "x");
    EXPECT_TRUE(layout.ok()) << layout.status();
    return std::make_unique<StagedTarget>(*std::move(layout));
  }
  size_t Blobs() {
    return std::distance(fs::directory_iterator(folder_ / "layout/blobs/sha256"),
                         fs::directory_iterator());
  }
  static oci::Digest Put(StagedTarget& target, const std::string& bytes) {
    const oci::Digest digest = oci::Digest::Of(AsBytes(bytes));
    auto upload = target.StartBlob(bytes.size());
    EXPECT_TRUE(upload.ok() && (*upload)->Write(AsBytes(bytes)).ok());
    EXPECT_TRUE((*upload)->Commit(digest, bytes.size()).ok());
    return digest;
  }

  fs::path folder_;
};

TEST_F(StagedTargetTest, BlobsAppearWithTheManifest) {
  const auto target = Open();
  const oci::Digest digest = Put(*target, "blob");
  EXPECT_TRUE(*target->HasBlob(digest, 4));
  EXPECT_FALSE(fs::exists(content::BlobPath(folder_ / "layout", digest)));
  ASSERT_TRUE(target->PutManifest("{}", oci::kManifestType).ok());
  EXPECT_TRUE(fs::exists(content::BlobPath(folder_ / "layout", digest)));
  EXPECT_EQ(Blobs(), 2u);
}

TEST_F(StagedTargetTest, WithoutAManifestNothingIsLeft) {
  auto target = Open();
  Put(*target, "one");
  Put(*target, "two");
  { auto dropped = target->StartBlob(std::nullopt); }
  target.reset();
  EXPECT_EQ(Blobs(), 0u);
  EXPECT_FALSE(fs::exists(folder_ / "layout/index.json"));
}

TEST_F(StagedTargetTest, BytesOfAnotherLengthFailAtTheManifest) {
  const auto target = Open();
  auto upload = target->StartBlob(std::nullopt);
  ASSERT_TRUE((*upload)->Write(AsBytes("bytes")).ok());
  ASSERT_TRUE((*upload)->Commit(oci::Digest::Of(AsBytes("others")), 6).ok());
  EXPECT_EQ(target->PutManifest("{}", oci::kManifestType).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(fs::exists(folder_ / "layout/index.json"));
}

}  // namespace
}  // namespace kapsule::ctl
