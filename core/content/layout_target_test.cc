#include "core/content/layout_target.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

namespace kapsule::content {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LayoutTargetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/kapsule-layout-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    layout_ = folder_ / "deep" / "layout";
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  std::unique_ptr<LayoutTarget> Open(std::string name = "enc") {
    return LayoutTarget::Open(layout_, std::move(name)).value();
  }

  static absl::Status Put(oci::ImageTarget& target, std::string_view content) {
    auto upload = target.StartBlob(std::nullopt).value();
    RETURN_IF_ERROR(upload->Write(AsBytes(content)));
    return upload->Commit(oci::Digest::Of(AsBytes(content)), content.size());
  }

  std::vector<std::string> Temporaries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(layout_)) {
      const std::string name = entry.path().filename();
      if (name.starts_with("new-")) names.push_back(name);
    }
    return names;
  }

  Json ReadIndex() const {
    return ParseJson(ReadFile(layout_ / "index.json", 1 << 20).value(), 1 << 20).value();
  }

  fs::path folder_, layout_;
};

TEST_F(LayoutTargetTest, MakesALayout) {
  Open();
  EXPECT_EQ(ReadFile(layout_ / "oci-layout", 100).value(), R"({"imageLayoutVersion":"1.0.0"})");
  EXPECT_TRUE(LayoutTarget::Open(layout_, "again").ok());
}

TEST_F(LayoutTargetTest, LeavesForeignFoldersAlone) {
  ASSERT_TRUE(MakeDirs(layout_, 0755).ok());
  std::ofstream(layout_ / "thesis.tex") << "text";
  EXPECT_EQ(LayoutTarget::Open(layout_, "x").status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(fs::exists(layout_ / "blobs"));
  fs::remove(layout_ / "thesis.tex");
  std::ofstream(layout_ / "oci-layout") << R"({"imageLayoutVersion":"2.0.0"})";
  EXPECT_EQ(LayoutTarget::Open(layout_, "x").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(LayoutTargetTest, BlobsAreFoundAfterwards) {
  auto target = Open();
  const oci::Digest digest = oci::Digest::Of(AsBytes("blob"));
  EXPECT_FALSE(target->HasBlob(digest, 4).value());
  ASSERT_TRUE(Put(*target, "blob").ok());
  EXPECT_TRUE(target->HasBlob(digest, 4).value());
  EXPECT_FALSE(target->HasBlob(digest, 5).value());
  EXPECT_EQ(ReadFile(BlobPath(layout_, digest), 10).value(), "blob");
  ASSERT_TRUE(Put(*target, "blob").ok());
  EXPECT_THAT(Temporaries(), IsEmpty());
}

TEST_F(LayoutTargetTest, AWrongSizeLeavesNothing) {
  auto target = Open();
  const oci::Digest digest = oci::Digest::Of(AsBytes("blob"));
  {
    auto upload = target->StartBlob(4).value();
    ASSERT_TRUE(upload->Write(AsBytes("blob")).ok());
    EXPECT_EQ(upload->Commit(digest, 5).code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_FALSE(target->HasBlob(digest, 4).value());
  EXPECT_THAT(Temporaries(), IsEmpty());
}

// Pieces that can go around the page cache, pieces that cannot, and both.
TEST_F(LayoutTargetTest, LargeBlobsHaveTheirBytesHoweverTheyAreWritten) {
  auto target = Open();
  constexpr size_t kSize = (3 << 20) + 1000;
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(4096, 4 << 20)), &std::free);
  const MutableByteSpan bytes(memory.get(), kSize);
  for (size_t i = 0; i < kSize; ++i) bytes[i] = static_cast<std::byte>(i * i >> 7);
  const std::vector<std::vector<size_t>> all_pieces = {
      {1 << 20, 1 << 20, 1 << 20, 1000}, {1 << 20, 4096, 100, (2 << 20) - 3196}, {5, kSize - 5}};
  for (const std::vector<size_t>& pieces : all_pieces) {
    auto upload = target->StartBlob(kSize).value();
    size_t at = 0;
    for (const size_t piece : pieces) {
      ASSERT_TRUE(upload->Write(bytes.subspan(at, piece)).ok());
      at += piece;
    }
    ASSERT_EQ(at, kSize);
    const oci::Digest digest = oci::Digest::Of(bytes);
    ASSERT_TRUE(upload->Commit(digest, kSize).ok());
    EXPECT_EQ(ReadFile(BlobPath(layout_, digest), kSize).value(), AsText(bytes));
    fs::remove(BlobPath(layout_, digest));
  }
}

TEST_F(LayoutTargetTest, ADroppedUploadLeavesNothing) {
  auto target = Open();
  {
    auto upload = target->StartBlob(std::nullopt).value();
    ASSERT_TRUE(upload->Write(AsBytes("half")).ok());
    EXPECT_EQ(Temporaries().size(), 1u);
  }
  EXPECT_THAT(Temporaries(), IsEmpty());
}

TEST_F(LayoutTargetTest, AKilledWritersFileIsRemovedALivingOnesIsNot) {
  auto target = Open();
  const pid_t child = fork();
  if (child == 0) {
    auto upload = target->StartBlob(std::nullopt).value();
    _exit(upload->Write(AsBytes("half")).ok() ? 0 : 1);
  }
  int result = -1;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  ASSERT_EQ(result, 0);
  auto upload = target->StartBlob(std::nullopt).value();
  ASSERT_TRUE(upload->Write(AsBytes("blob")).ok());
  EXPECT_EQ(Temporaries().size(), 2u);
  Open("other");
  EXPECT_EQ(Temporaries().size(), 1u);
  EXPECT_TRUE(upload->Commit(oci::Digest::Of(AsBytes("blob")), 4).ok());
}

TEST_F(LayoutTargetTest, AFullDiskLeavesNothing) {
  auto target = Open();
  const pid_t child = fork();
  if (child == 0) {
    // A file size limit fails write(2) as a full disk does.
    signal(SIGXFSZ, SIG_IGN);
    const ::rlimit limit{1000, 1000};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(2);
    auto upload = target->StartBlob(std::nullopt).value();
    const absl::Status written = upload->Write(AsBytes(std::string(5000, 'x')));
    upload.reset();
    _exit(written.ok() ? 1 : 0);
  }
  int result = -1;
  ASSERT_EQ(waitpid(child, &result, 0), child);
  EXPECT_EQ(result, 0);
  EXPECT_THAT(Temporaries(), IsEmpty());
}

TEST_F(LayoutTargetTest, TheIndexKeepsOtherEntriesAndMembers) {
  auto target = Open("enc");
  std::ofstream(layout_ / "index.json")
      << R"({"schemaVersion":2,"future":{"x":1},"manifests":[{"mediaType":"a/b","digest":"sha256:)"
      << std::string(64, '0') << R"(","size":1,"annotations":{")" << kRefNameAnnotation
      << R"(":"old"},"more":true}]})";
  ASSERT_TRUE(target->PutManifest("{}", oci::kManifestType).ok());
  ASSERT_TRUE(target->PutManifest("{ }", oci::kManifestType).ok());
  const Json index = ReadIndex();
  EXPECT_EQ(index["future"]["x"], 1);
  ASSERT_EQ(index["manifests"].size(), 2u);
  EXPECT_EQ(index["manifests"][0]["more"], true);
  EXPECT_EQ(index["manifests"][1]["annotations"][kRefNameAnnotation], "enc");
  EXPECT_EQ(index["manifests"][1]["digest"], oci::Digest::Of(AsBytes("{ }")).text());
  EXPECT_EQ(index["manifests"][1]["size"], 3);
}

TEST_F(LayoutTargetTest, UnnamedImagesStandBesideEachOther) {
  auto target = Open("");
  for (const char* manifest : {"{}", "{ }", "{}"})
    ASSERT_TRUE(target->PutManifest(manifest, oci::kManifestType).ok());
  EXPECT_EQ(ReadIndex()["manifests"].size(), 2u);
}

TEST_F(LayoutTargetTest, ABrokenIndexIsNotReplaced) {
  auto target = Open();
  std::ofstream(layout_ / "index.json") << "{broken";
  const absl::Status status = target->PutManifest("{}", oci::kManifestType);
  EXPECT_THAT(Message(status), HasSubstr("index.json"));
  EXPECT_EQ(ReadFile(layout_ / "index.json", 100).value(), "{broken");
}

TEST_F(LayoutTargetTest, AFifoIsNotWaitedFor) {
  auto target = Open();
  const oci::Digest digest = oci::Digest::Of(AsBytes("blob"));
  ASSERT_EQ(mkfifo(BlobPath(layout_, digest).c_str(), 0600), 0);
  EXPECT_EQ(target->HasBlob(digest, 4).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kapsule::content
