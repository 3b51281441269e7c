#include "core/image/source_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>

namespace kapsule::image {
namespace {

constexpr size_t kMiB = 1 << 20;

// In /var/tmp, which lies on a disk.
class SourceFileTest : public testing::Test {
 protected:
  SourceFileTest() {
    std::string name = "/var/tmp/kapsule-source-XXXXXX";
    folder_ = mkdtemp(name.data());
    path_ = folder_ / "model";
  }
  ~SourceFileTest() override { std::filesystem::remove_all(folder_); }

  std::string Write(size_t size) const {
    std::string content(size, '\0');
    for (size_t i = 0; i < size; ++i) content[i] = static_cast<char>(i * i >> 9);
    std::ofstream(path_) << content;
    return content;
  }

  void DropFromPageCache() const {
    const UniqueFd fd = OpenFile(path_, O_RDONLY).value();
    ASSERT_EQ(fdatasync(fd.get()), 0);
    ASSERT_EQ(posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  }

  size_t PagesInCache(size_t size) const {
    const UniqueFd fd = OpenFile(path_, O_RDONLY).value();
    void* const map = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
    std::vector<unsigned char> pages(CeilDiv(size, 4096));
    EXPECT_EQ(mincore(map, size, pages.data()), 0);
    munmap(map, size);
    return std::ranges::count_if(pages, [](unsigned char page) { return (page & 1) != 0; });
  }

  // All of it, by rooms of `room` bytes that begin `skew` bytes behind a page.
  std::string ReadAll(size_t size, size_t room, size_t skew) const {
    const auto file = SourceFile::Open(path_, size).value();
    const std::unique_ptr<std::byte, decltype(&std::free)> memory(
        static_cast<std::byte*>(std::aligned_alloc(4096, AlignUp(room + skew, 4096))), &std::free);
    const MutableByteSpan bytes(memory.get() + skew, room);
    std::string content;
    while (file->left() > 0) {
      const absl::StatusOr<size_t> n = file->Read(bytes);
      EXPECT_TRUE(n.ok() && *n > 0) << n.status();
      if (!n.ok() || *n == 0) break;
      content += AsText(bytes.first(*n));
    }
    EXPECT_TRUE(file->CheckUnchanged().ok());
    return content;
  }

  std::filesystem::path folder_, path_;
};

TEST_F(SourceFileTest, GivesItsBytesInRoomsOfEveryKind) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{4096}, 3 * kMiB, 3 * kMiB + 777}) {
    const std::string content = Write(size);
    for (const size_t room : {kMiB, kMiB - 65536, size_t{4096}, size_t{5000}}) {
      for (const size_t skew : {0, 16}) {
        DropFromPageCache();
        EXPECT_EQ(ReadAll(size, room, skew), content) << size << " " << room << " " << skew;
        EXPECT_EQ(ReadAll(size, room, skew), content) << "from memory";
      }
    }
  }
}

TEST_F(SourceFileTest, LeavesThePageCacheAsItIs) {
  const size_t size = 4 * kMiB + 1000;
  const std::string content = Write(size);
  DropFromPageCache();
  ASSERT_EQ(PagesInCache(size), 0u);
  EXPECT_EQ(ReadAll(size, kMiB, 0), content);
  EXPECT_EQ(PagesInCache(size), 0u) << "this test wants a /var/tmp that takes O_DIRECT";
}

TEST_F(SourceFileTest, SeesWhatWasJustWritten) {
  Write(2 * kMiB);
  DropFromPageCache();
  const UniqueFd fd = OpenFile(path_, O_RDWR).value();
  ASSERT_EQ(pwrite(fd.get(), "fresh", 5, 100'000), 5);
  EXPECT_EQ(ReadAll(2 * kMiB, kMiB, 0).substr(100'000, 5), "fresh");
}

TEST_F(SourceFileTest, RefusesAFileThatHasChanged) {
  Write(kMiB);
  EXPECT_TRUE(absl::IsFailedPrecondition(SourceFile::Open(path_, kMiB - 1).status()));
  const auto file = SourceFile::Open(path_, kMiB).value();
  EXPECT_TRUE(file->CheckUnchanged().ok());
  std::filesystem::resize_file(path_, 10'000);
  EXPECT_TRUE(absl::IsFailedPrecondition(file->CheckUnchanged()));
  Bytes room(kMiB);
  while (file->left() > 0) {
    const absl::StatusOr<size_t> n = file->Read(room);
    if (n.ok()) continue;
    EXPECT_TRUE(absl::IsDataLoss(n.status())) << n.status();
    return;
  }
  ADD_FAILURE() << "read bytes that are gone";
}

}  // namespace
}  // namespace kapsule::image
