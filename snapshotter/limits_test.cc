// How far the data plane goes: very large, very many, very odd layers, through
// the real kapsule-fuse and real mounts. Needs root.
#include <absl/time/clock.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "core/blob/sparse_layer.h"
#include "snapshotter/data_plane_test_node.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using blob::SampleFiles;
using blob::SparseFile;
using blob::SparseLayer;
using testing::CompareTree;
using testing::ErofsMount;
using testing::StatusLine;
using testing::StoredLayer;

constexpr uint64_t kMiB = 1 << 20, kGiB = 1 << 30, kTiB = uint64_t{1} << 40;
constexpr uint32_t kChunk = 64 * 1024;

int64_t ResidentKiB(pid_t pid) { return std::stoll(StatusLine(pid, "VmRSS")); }

class LimitsTest : public testing::DataPlaneTest {
 protected:
  void SetUp() override {
    DataPlaneTest::SetUp();
    StartPlane();
  }
  void TearDown() override {
    mount_.reset();
    DataPlaneTest::TearDown();
  }

  // Opens a layer of `files` and mounts it.
  void OpenSparse(const std::vector<SparseFile>& files, uint32_t chunk_size = kChunk) {
    const fs::path path = folder_ / fmt::format("sparse-{}", ++layers_);
    sparse_ = blob::WriteSparseLayer(path, files, chunk_size);
    auto fd = OpenFile(path, O_RDONLY | O_DIRECT);
    ASSERT_TRUE(fd.ok()) << fd.status();
    const auto view =
        plane_->Open(oci::Digest::Of(AsBytes(path.string())), sparse_.size, true, *std::move(fd),
                     Rewrap(sparse_.layer, key_), absl::Now() + absl::Seconds(60));
    ASSERT_TRUE(view.ok()) << view.status();
    auto mounted = Mount(*view);
    ASSERT_TRUE(mounted.ok()) << mounted.status();
    mount_ = *std::move(mounted);
  }

  // Empty where `length` bytes from `offset` on of a file are as they should be.
  std::string Compare(const std::string& file, uint64_t offset, size_t length) const {
    const auto fd = OpenFile(mount_->path() / file, O_RDONLY);
    if (!fd.ok()) return Message(fd.status());
    std::string bytes(length, '\0');
    if (pread(fd->get(), bytes.data(), length, static_cast<off_t>(offset)) !=
        static_cast<ssize_t>(length))
      return fmt::format("{}: short read at {}", file, offset);
    const uint64_t at = archive::FindEntry(sparse_.layer.toc, file)->offset + offset;
    const uint32_t chunk = sparse_.layer.header.chunk_size;
    const std::string expected =
        (blob::SparseChunk(at / chunk, chunk) + blob::SparseChunk(at / chunk + 1, chunk))
            .substr(at % chunk, length);
    return bytes == expected ? "" : fmt::format("{} differs at {}", file, offset);
  }

  SparseLayer sparse_;
  std::unique_ptr<ErofsMount> mount_;
  int layers_ = 0;
};

TEST_F(LimitsTest, ALayerOfOneTebibyteWithAFileOf300GiB) {
  constexpr uint64_t kFirst = 300 * kGiB, kSecond = kTiB - kFirst;
  const std::vector<uint64_t> first = {0, 4 * kGiB - kChunk, 4 * kGiB, 299 * kGiB, kFirst - kChunk};
  const std::vector<uint64_t> second = {0, kSecond / 2, kSecond - kChunk};
  OpenSparse({{"a/300-gib", kFirst, first}, {"b", kSecond, second}});
  ASSERT_NE(mount_, nullptr);
  EXPECT_GE(sparse_.size, kTiB);
  EXPECT_EQ(fs::file_size(mount_->path() / "a/300-gib"), kFirst);
  // Single pages: a larger read of the kernel's would touch chunks that are not there.
  for (const uint64_t at : first) EXPECT_EQ(Compare("a/300-gib", at, 4096), "");
  for (const uint64_t at : second) EXPECT_EQ(Compare("b", at + kChunk - 4096, 4096), "");
}

TEST_F(LimitsTest, AChunkWithoutItsTagIsAnErrorAndTheNextReadIsServed) {
  OpenSparse({{"weights", kGiB, {0}}});
  ASSERT_NE(mount_, nullptr);
  EXPECT_EQ(Compare("weights", 512 * kMiB, 4096), "weights: short read at 536870912");
  EXPECT_EQ(Compare("weights", 0, 4096), "");
}

TEST_F(LimitsTest, MemoryDoesNotGrowWithTheBytesOfALayer) {
  OpenSparse({{"weights", kMiB, {0}}});
  const int64_t before = ResidentKiB(plane_->pid());
  OpenSparse({{"weights", kTiB, {0}}});
  ASSERT_NE(mount_, nullptr);
  EXPECT_LT(ResidentKiB(plane_->pid()) - before, 1024);
}

TEST_F(LimitsTest, AHundredThousandFilesWithNamesOf255Bytes) {
  std::vector<SparseFile> files;
  for (int i = 0; i < 100'000; ++i) {
    std::string name = fmt::format("{:06}-", i);
    if (i % 1000 == 0) name.resize(255, 'n');
    files.push_back({"f/" + name, 100, {}});
    if (i % 10'000 == 0) files.back().filled = {0};
  }
  OpenSparse(files);
  ASSERT_NE(mount_, nullptr);
  size_t count = 0;
  for (const auto& entry : fs::directory_iterator(mount_->path() / "f")) {
    (void)entry;
    ++count;
  }
  EXPECT_EQ(count, files.size());
  for (size_t i = 0; i < files.size(); i += 10'000) EXPECT_EQ(Compare(files[i].path, 0, 100), "");
}

class ChunkSizeTest : public LimitsTest, public ::testing::WithParamInterface<uint32_t> {};

TEST_P(ChunkSizeTest, EveryFileIsRightAndTheTarEndsInsideOfABlock) {
  const StoredLayer layer = Store(SampleFiles(), key_, true, GetParam());
  EXPECT_NE(layer.layer.header.tar_length % 4096, 0u);
  const auto view = Open(layer);
  ASSERT_TRUE(view.ok()) << view.status();
  const auto mounted = Mount(*view);
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_EQ(CompareTree((*mounted)->path(), layer.layer), "");
}
INSTANTIATE_TEST_SUITE_P(All, ChunkSizeTest,
                         ::testing::Values(4 * 1024, 16 * 1024, 64 * 1024, 1024 * 1024));

TEST_F(LimitsTest, FiveHundredLayersAtOnceTakeAtMostEightKiBEach) {
  constexpr int kLayers = 500, kWarm = 20;
  std::vector<StoredLayer> layers;
  std::vector<std::unique_ptr<ErofsMount>> mounts;
  int64_t before = 0;
  for (int i = 0; i < kLayers; ++i) {
    layers.push_back(Store({blob::MakeTestFile("weights", blob::TestBytes(100'000, i))}, key_));
    const auto view = Open(layers.back());
    ASSERT_TRUE(view.ok()) << i << ": " << view.status();
    auto mounted = Mount(*view);
    ASSERT_TRUE(mounted.ok()) << i << ": " << mounted.status();
    mounts.push_back(*std::move(mounted));
    if (i + 1 == kWarm) before = ResidentKiB(plane_->pid());
  }
  EXPECT_LE(ResidentKiB(plane_->pid()) - before, 8 * (kLayers - kWarm));
  for (int i = 0; i < kLayers; ++i)
    EXPECT_EQ(CompareTree(mounts[i]->path(), layers[i].layer), "") << i;
}

}  // namespace
}  // namespace kapsule::snapshotter
