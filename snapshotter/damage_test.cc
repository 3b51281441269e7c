// Ciphertext that goes bad under a running mount: an error for what is bad, once
// in the log, and everything else is served. Needs root.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "core/archive/index.h"
#include "snapshotter/data_plane_test_node.h"
#include "snapshotter/faulty_file.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;
using blob::MakeTestFile;
using blob::TestBytes;
using testing::CompareTree;
using testing::ErofsMount;
using testing::FaultyFile;
using testing::StoredLayer;

constexpr uint64_t kChunk = 64 * 1024;
constexpr size_t kSize = 8 << 20;

class DamageTest : public testing::DataPlaneTest {
 protected:
  void SetUp() override {
    DataPlaneTest::SetUp();
    log_ = folder_ / "log";
    // kapsule-fuse inherits what it logs to.
    stderr_ = UniqueFd(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
    const auto log = OpenFile(log_, O_WRONLY | O_CREAT | O_APPEND, 0600);
    ASSERT_TRUE(log.ok());
    ASSERT_GE(dup2(log->get(), STDERR_FILENO), 0);
    StartPlane();
    layer_ = StoreWeights();
    other_ = Store({MakeTestFile("weights", TestBytes(kSize, 6))}, key_);
  }
  void TearDown() override {
    dup2(stderr_.get(), STDERR_FILENO);
    stderr_.reset();
    if (HasFailure()) fputs(Log().c_str(), stderr);
    plane_.reset();
    faulty_.reset();
    DataPlaneTest::TearDown();
  }

  StoredLayer StoreWeights() { return Store({MakeTestFile("weights", TestBytes(kSize, 5))}, key_); }

  std::unique_ptr<ErofsMount> OpenAndMount(const StoredLayer& layer) {
    const auto view = Open(layer);
    if (!view.ok()) {
      ADD_FAILURE() << view.status();
      return nullptr;
    }
    return Mount(*view).value();
  }

  void Flip(const StoredLayer& layer, uint64_t at) const {
    const auto fd = OpenFile(layer.path, O_WRONLY);
    const char flipped = static_cast<char>(layer.layer.bytes[at] ^ 4);
    ASSERT_EQ(pwrite(fd->get(), &flipped, 1, static_cast<off_t>(at)), 1);
  }
  void Mend(const StoredLayer& layer) const {
    const auto fd = OpenFile(layer.path, O_WRONLY);
    ASSERT_EQ(pwrite(fd->get(), layer.layer.bytes.data(), layer.layer.bytes.size(), 0),
              static_cast<ssize_t>(layer.layer.bytes.size()));
  }

  // Reads every page of the file in turn; the pages that gave EIO. Other errors
  // and wrong bytes fail the test.
  std::vector<uint64_t> BadPages(const ErofsMount& mount, const StoredLayer& layer) const {
    std::vector<uint64_t> bad;
    const auto fd = OpenFile(mount.path() / "weights", O_RDONLY);
    posix_fadvise(fd->get(), 0, 0, POSIX_FADV_DONTNEED);
    posix_fadvise(fd->get(), 0, 0, POSIX_FADV_RANDOM);
    std::string page(4096, '\0');
    for (uint64_t at = 0; at < kSize; at += page.size()) {
      const ssize_t n = pread(fd->get(), page.data(), page.size(), static_cast<off_t>(at));
      if (n < 0) {
        EXPECT_EQ(errno, EIO);
        bad.push_back(at);
      } else if (std::string_view(page) !=
                 std::string_view(layer.layer.plain).substr(FileAt(layer) + at, page.size())) {
        ADD_FAILURE() << "wrong bytes at " << at;
      }
    }
    return bad;
  }
  static std::vector<uint64_t> PagesOf(uint64_t chunk) {
    std::vector<uint64_t> pages;
    for (uint64_t at = 0; at < kChunk; at += 4096) pages.push_back(chunk + at);
    return pages;
  }
  static uint64_t FileAt(const StoredLayer& layer) {
    return archive::FindEntry(layer.layer.toc, "weights")->offset;
  }

  std::string Log() const { return ReadFile(log_, 1 << 26).value_or(""); }
  // Lines of the log at level error that hold `text`.
  int Errors(std::string_view text) const {
    const std::string log = Log();
    int n = 0;
    for (size_t begin = 0; begin < log.size();) {
      const size_t end = std::min(log.find('\n', begin), log.size());
      const std::string_view line = std::string_view(log).substr(begin, end - begin);
      n += line.find("error") != line.npos && line.find(text) != line.npos;
      begin = end + 1;
    }
    return n;
  }

  fs::path log_;
  UniqueFd stderr_;
  StoredLayer layer_, other_;
  std::unique_ptr<FaultyFile> faulty_;
};

TEST_F(DamageTest, AFlippedBitOfAChunkIsThatChunksErrorAndOneLine) {
  constexpr uint64_t kLast = kSize - kChunk;
  for (const uint64_t chunk : {uint64_t{0}, 5 * kChunk, kLast}) {
    for (const uint64_t in_chunk : {uint64_t{0}, kChunk / 2 + 3, kChunk - 1}) {
      // A layer that nothing of is in memory yet.
      const StoredLayer layer = StoreWeights();
      const auto mount = OpenAndMount(layer);
      Flip(layer, FileAt(layer) + chunk + in_chunk);
      EXPECT_EQ(BadPages(*mount, layer), PagesOf(chunk)) << chunk << " " << in_chunk;
      EXPECT_EQ(BadPages(*mount, layer), PagesOf(chunk));
      EXPECT_EQ(Errors(layer.digest.text()), 1);
      EXPECT_GE(Errors(fmt::format("at byte {} of the layer", FileAt(layer) + chunk)), 1);
      Mend(layer);
      EXPECT_EQ(BadPages(*mount, layer), std::vector<uint64_t>());
    }
  }
}

TEST_F(DamageTest, ADamagedIndexPageIsAnErrorUntilItIsMended) {
  const auto layout = archive::LayoutOf(layer_.layer.header);
  const auto level = layout.tags.levels.front();
  for (const uint64_t at : {level.offset, level.offset + level.length - 1}) {
    const auto mount = OpenAndMount(other_);  // so that the process is warm
    Flip(layer_, at);
    // The TOC is behind the same page, so opening fails and says why.
    EXPECT_EQ(Open(layer_).status().code(), absl::StatusCode::kDataLoss);
    Mend(layer_);
    EXPECT_EQ(BadPages(*OpenAndMount(layer_), layer_), std::vector<uint64_t>());
    EXPECT_EQ(BadPages(*mount, other_), std::vector<uint64_t>());
    ASSERT_TRUE(plane_->Close(layer_.digest, absl::Now() + absl::Seconds(10)).ok());
  }
}

TEST_F(DamageTest, ATruncatedBlobIsAnErrorForWhatIsGone) {
  const auto mount = OpenAndMount(layer_), beside = OpenAndMount(other_);
  const uint64_t kept = FileAt(layer_) + kSize / 2;
  ASSERT_EQ(truncate(layer_.path.c_str(), static_cast<off_t>(kept)), 0);
  const std::vector<uint64_t> bad = BadPages(*mount, layer_);
  ASSERT_FALSE(bad.empty());
  EXPECT_GE(bad.front() + kChunk, kSize / 2);
  EXPECT_EQ(bad.size(), (kSize - bad.front()) / 4096);
  EXPECT_EQ(BadPages(*beside, other_), std::vector<uint64_t>());
}

TEST_F(DamageTest, ABlobThatIsReplacedByAnotherGivesNoByteOfIt) {
  const auto mount = OpenAndMount(layer_);
  const auto fd = OpenFile(layer_.path, O_WRONLY);
  ASSERT_EQ(pwrite(fd->get(), other_.layer.bytes.data(), other_.layer.bytes.size(), 0),
            static_cast<ssize_t>(other_.layer.bytes.size()));
  EXPECT_EQ(BadPages(*mount, layer_).size(), kSize / 4096);
}

TEST_F(DamageTest, AFailingDiskIsAnErrorForWhatItLostAndHealsWithIt) {
  faulty_ = std::make_unique<FaultyFile>(folder_ / "faulty", layer_.layer.bytes);
  layer_.path = faulty_->path();
  const auto mount = OpenAndMount(layer_), beside = OpenAndMount(other_);
  const uint64_t bad = FileAt(layer_) + 20 * kChunk;
  faulty_->Break(bad + 100, bad + 200);
  EXPECT_EQ(BadPages(*mount, layer_), PagesOf(20 * kChunk));
  EXPECT_EQ(BadPages(*mount, layer_), PagesOf(20 * kChunk));
  EXPECT_EQ(BadPages(*beside, other_), std::vector<uint64_t>());
  EXPECT_EQ(Errors(layer_.digest.text()), 1);  // not one for each read
  faulty_->Repair();
  EXPECT_EQ(BadPages(*mount, layer_), std::vector<uint64_t>());
  EXPECT_EQ(CompareTree(mount->path(), layer_.layer), "");
}

}  // namespace
}  // namespace kapsule::snapshotter
