#include "core/content/layout_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "core/content/layout_target.h"

namespace kapsule::content {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class LayoutSourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/kapsule-layout-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    layout_ = name;
    blob_.media_type = oci::kLayerTarType;
    blob_.digest = oci::Digest::Of(AsBytes(content_));
    blob_.size = content_.size();
    auto target = LayoutTarget::Open(layout_, "enc").value();
    auto upload = target->StartBlob(std::nullopt).value();
    ASSERT_TRUE(upload->Write(AsBytes(content_)).ok());
    ASSERT_TRUE(upload->Commit(blob_.digest, blob_.size).ok());
    oci::Manifest manifest;
    manifest.config = blob_;
    manifest_ = oci::SerializeManifest(manifest);
    ASSERT_TRUE(target->PutManifest(manifest_, oci::kManifestType).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(layout_).ok()); }

  std::unique_ptr<LayoutSource> Open(std::string name = "enc") {
    return LayoutSource::Open(layout_, std::move(name)).value();
  }

  absl::StatusOr<std::string> Read(const oci::Descriptor& blob) {
    std::string bytes;
    RETURN_IF_ERROR(Open()->ReadBlob(blob, [&](ByteSpan piece) {
      bytes += AsText(piece);
      return absl::OkStatus();
    }));
    return bytes;
  }

  const std::string content_ = std::string(3'000'000, 'c');
  fs::path layout_;
  oci::Descriptor blob_;
  std::string manifest_;
};

TEST_F(LayoutSourceTest, ReadsWhatWasWritten) {
  const auto manifest = Open()->GetManifest(std::nullopt).value();
  EXPECT_EQ(manifest.bytes, manifest_);
  EXPECT_EQ(manifest.media_type, oci::kManifestType);
  EXPECT_TRUE(Read(blob_).value() == content_);
  EXPECT_EQ(Open("")->GetManifest(std::nullopt)->bytes, manifest_);
  const auto by_digest = Open()->GetManifest(oci::Digest::Of(AsBytes(manifest_))).value();
  EXPECT_EQ(by_digest.bytes, manifest_);
  EXPECT_EQ(by_digest.media_type, oci::kManifestType);
}

TEST_F(LayoutSourceTest, SaysWhichImagesThereAre) {
  EXPECT_EQ(Open("other")->GetManifest(std::nullopt).status().code(), absl::StatusCode::kNotFound);
  auto target = LayoutTarget::Open(layout_, "second").value();
  ASSERT_TRUE(target->PutManifest(manifest_, oci::kManifestType).ok());
  const auto any = Open("")->GetManifest(std::nullopt);
  EXPECT_EQ(any.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(any.status()), HasSubstr("2 images"));
}

TEST_F(LayoutSourceTest, AFolderWithoutLayoutIsRefused) {
  EXPECT_EQ(LayoutSource::Open(layout_ / "blobs", "x").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(LayoutSourceTest, EveryByteOfABlobCounts) {
  for (const size_t at : {size_t{0}, content_.size() / 2, content_.size() - 1}) {
    std::fstream file(BlobPath(layout_, blob_.digest), std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at)).put('x').flush();
    EXPECT_EQ(Read(blob_).status().code(), absl::StatusCode::kDataLoss) << at;
    file.seekp(static_cast<std::streamoff>(at)).put('c').flush();
  }
  EXPECT_TRUE(Read(blob_).ok());
}

TEST_F(LayoutSourceTest, WrongSizesAreFoundBeforeTheFirstByte) {
  oci::Descriptor blob = blob_;
  blob.size += 1;
  bool called = false;
  const absl::Status status = Open()->ReadBlob(blob, [&](ByteSpan) {
    called = true;
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(called);
}

TEST_F(LayoutSourceTest, TheSinksErrorStopsReading) {
  int pieces = 0;
  const absl::Status status = Open()->ReadBlob(blob_, [&](ByteSpan) {
    ++pieces;
    return Unavailable("pipe closed");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(pieces, 1);
}

TEST_F(LayoutSourceTest, AChangedManifestIsRefused) {
  const fs::path path = BlobPath(layout_, oci::Digest::Of(AsBytes(manifest_)));
  std::fstream(path, std::ios::in | std::ios::out).put('[');
  EXPECT_EQ(Open()->GetManifest(std::nullopt).status().code(), absl::StatusCode::kDataLoss);
  fs::remove(path);
  EXPECT_EQ(Open()->GetManifest(std::nullopt).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(LayoutSourceTest, HugeFilesAreNotRead) {
  fs::resize_file(layout_ / "index.json", oci::kMaxManifestBytes + 1);
  EXPECT_EQ(Open()->GetManifest(std::nullopt).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kapsule::content
