// Views under the real kernel. Needs root and a kernel with EROFS: fails
// otherwise.
#include <dirent.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "core/blob/test_layer.h"
#include "core/view/view.h"

namespace kapsule::view {
namespace {

namespace fs = std::filesystem;
using archive::DirectoryEntry;
using archive::EntryType;
using archive::FileEntry;
using archive::Toc;
using archive::TocEntry;
using blob::TestFile;

// A folder in /tmp with a view's image, its mount and an overlay over that.
class MountTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(geteuid(), 0u) << "this test mounts: run it as root";
    char name[] = "/tmp/kapsule-view-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    for (const char* sub : {"tree", "upper", "work", "overlay"})
      fs::create_directory(folder_ / sub);
  }
  void TearDown() override {
    umount((folder_ / "overlay").c_str());
    umount((folder_ / "tree").c_str());
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  void MountImage(const std::string& image) {
    ASSERT_TRUE(WriteFileAtomic(folder_ / "image", AsBytes(image), 0600).ok());
    ASSERT_EQ(Run("mount -t erofs -o ro,loop image tree"), 0);
  }
  void MountToc(const Toc& toc, const std::string& tar, bool seal = false) {
    const auto metadata = BuildMetadata(toc, tar.size(), {seal});
    ASSERT_TRUE(metadata.ok()) << metadata.status();
    std::string image = metadata->bytes + tar;
    image.resize(AlignUp(image.size(), 4096));
    MountImage(image);
  }
  void MountLayer(const blob::TestLayer& layer) {
    std::optional<crypt::LayerKey> key;
    if (layer.header.encrypted) key = layer.key.Clone();
    auto reader = blob::LayerReader::Open(std::make_unique<MemoryReader>(AsBytes(layer.bytes)),
                                          layer.ref, std::move(key));
    ASSERT_TRUE(reader.ok()) << reader.status();
    const auto view = View::Open(*std::move(reader));
    ASSERT_TRUE(view.ok()) << view.status();
    std::string image((*view)->size(), '#');
    ASSERT_TRUE((*view)->Read(0, std::as_writable_bytes(std::span(image))).ok());
    MountImage(image);
  }
  // As kapsule-snapshotter does it. False where the kernel has no such mounts.
  bool MountFileBacked() {
    if (mount((folder_ / "image").c_str(), (folder_ / "tree").c_str(), "erofs",
              MS_RDONLY | MS_NOSUID | MS_NODEV, nullptr) == 0)
      return true;
    EXPECT_EQ(errno, ENOTBLK) << strerror(errno);
    return false;
  }
  void Unmount() { ASSERT_EQ(umount((folder_ / "tree").c_str()), 0); }

  int Run(const std::string& command) {
    const int status = system(("cd " + folder_.string() + " && " + command).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  fs::path Tree(const std::string& path) const { return folder_ / "tree" / path; }
  fs::path folder_;
};

struct stat Lstat(const fs::path& path) {
  struct stat st {};
  EXPECT_EQ(lstat(path.c_str(), &st), 0) << path;
  return st;
}

size_t CountTree(const fs::path& root) {
  size_t count = 0;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(root, error); !error && it != fs::end(it);
       it.increment(error))
    ++count;
  EXPECT_FALSE(error) << error.message();
  return count;
}

// The mounted tree is that of `toc`, whose files stand in `tar`.
void ExpectTree(const fs::path& root, const Toc& toc, const std::string& tar, bool sealed) {
  size_t names = 0;
  std::map<std::string, nlink_t> links;
  for (const TocEntry& entry : toc.entries)
    if (entry.type == EntryType::kHardLink) ++links[entry.link_target];
  for (const TocEntry& entry : toc.entries) {
    const fs::path path = root / entry.path;
    const struct stat st = Lstat(path);
    names += !entry.path.empty();
    if (entry.type == EntryType::kHardLink) {
      EXPECT_EQ(st.st_ino, Lstat(root / entry.link_target).st_ino) << path;
      continue;
    }
    const bool is_file = entry.type == EntryType::kFile;
    const bool seal = sealed && is_file;
    EXPECT_EQ(st.st_mode & 07777, seal ? 0444 | (entry.mode & 0111) : entry.mode) << path;
    EXPECT_EQ(st.st_uid, seal ? 65534 : entry.uid) << path;
    EXPECT_EQ(st.st_gid, seal ? 65534 : entry.gid) << path;
    EXPECT_EQ(st.st_mtime, entry.mtime) << path;
    EXPECT_EQ(S_ISREG(st.st_mode), is_file);
    if (is_file) {
      EXPECT_EQ(st.st_nlink, 1 + links[entry.path]) << path;
      const auto content = ReadFile(path, 64 << 20);
      ASSERT_TRUE(content.ok()) << content.status();
      EXPECT_TRUE(*content == tar.substr(entry.offset, entry.size)) << path;
    }
    if (entry.type == EntryType::kSymlink) {
      EXPECT_EQ(fs::read_symlink(path), entry.link_target);
    }
  }
  EXPECT_EQ(CountTree(root), names);
}

TEST_F(MountTest, TheKernelShowsTheTreeOfAnEncryptedLayer) {
  const blob::TestLayer layer = blob::BuildTestLayer(blob::SampleFiles(), true);
  MountLayer(layer);
  ExpectTree(folder_ / "tree", layer.toc, layer.plain, true);
  EXPECT_EQ(Run("fsck.erofs image > fsck.log 2>&1"), 0) << *ReadFile(folder_ / "fsck.log", 65536);
}

TEST_F(MountTest, MappedPagesHoldZerosBehindTheEndOfAFile) {
  // As on every file system; some programs rely on it.
  const blob::TestLayer layer = blob::BuildTestLayer(blob::SampleFiles(), true);
  MountLayer(layer);
  for (const size_t size : {1, 511, 4097}) {
    const UniqueFd fd(
        open(Tree(fmt::format("models/tiny/file-{}", size)).c_str(), O_RDONLY | O_CLOEXEC));
    const size_t pages = AlignUp(size, 4096);
    auto* mapped =
        static_cast<const char*>(mmap(nullptr, pages, PROT_READ, MAP_PRIVATE, fd.get(), 0));
    ASSERT_NE(mapped, MAP_FAILED);
    EXPECT_EQ(std::string(mapped + size, pages - size), std::string(pages - size, '\0'));
    munmap(const_cast<char*>(mapped), pages);
  }
}

TEST_F(MountTest, TarsOfOthersAreMountedByBlocksOf512) {
  const blob::TestLayer layer = blob::BuildTestLayer(blob::SampleFiles(), false);
  Toc toc = layer.toc;
  std::string tar;
  for (TocEntry& entry : toc.entries) {
    if (entry.type != EntryType::kFile) continue;
    tar += std::string(512, 'h');
    const std::string content = layer.plain.substr(entry.offset, entry.size);
    entry.offset = tar.size();
    tar += content;
    tar.resize(AlignUp(tar.size(), 512));
  }
  ASSERT_EQ(BuildMetadata(toc, tar.size(), {})->block_size, 512u);
  MountToc(toc, tar);
  ExpectTree(folder_ / "tree", toc, tar, false);
}

// Links and directories whose data ends at every distance from the end of a
// block: behind the inode, in blocks, or in both.
Toc TailsOfEverySize(uint64_t offset_of_file) {
  Toc toc{{FileEntry("f", 1), DirectoryEntry("d"), DirectoryEntry("s")}};
  toc.entries[0].offset = offset_of_file;
  for (size_t size = 1; size <= archive::kMaxPath; size += size % 512 < 400 && size < 3900 ? 31 : 1)
    toc.entries.push_back(
        archive::SymlinkEntry(fmt::format("s/{:04}", size), std::string(size, 't')));
  for (int n = 0; n < 700; n += n < 30 ? 1 : 7) {
    toc.entries.push_back(DirectoryEntry(fmt::format("d/{:04}", n)));
    for (int k = 0; k < n; ++k)
      toc.entries.push_back(FileEntry(fmt::format("d/{:04}/{:03}", n, k), 0));
  }
  for (size_t length = 1; length <= 255; ++length) {
    toc.entries.push_back(DirectoryEntry("d/z" + std::to_string(length)));
    for (const char c : {'a', 'b'})
      toc.entries.push_back(FileEntry(fmt::format("d/z{}/{}", length, std::string(length, c)), 0));
  }
  archive::SortToc(toc);
  return toc;
}

TEST_F(MountTest, TailsOfEverySizeAreRead) {
  const std::string tar(64 << 10, 'x');
  for (const uint64_t offset : {4096, 512}) {
    SCOPED_TRACE(offset);
    const Toc toc = TailsOfEverySize(offset);
    MountToc(toc, tar);
    ExpectTree(folder_ / "tree", toc, tar, false);
    Unmount();
    if (MountFileBacked()) {
      ExpectTree(folder_ / "tree", toc, tar, false);
      Unmount();
    }
    if (offset == 4096) {  // fsck.erofs of Debian 12 takes no blocks of 512
      EXPECT_EQ(Run("fsck.erofs image > fsck.log 2>&1"), 0)
          << *ReadFile(folder_ / "fsck.log", 65536);
    }
  }
}

TEST_F(MountTest, AHundredThousandFilesAreFound) {
  Toc toc{{DirectoryEntry("d")}};
  for (int n = 0; n < 100'000; ++n)
    toc.entries.push_back(FileEntry(fmt::format("d/file-{:06}", n), 0));
  MountToc(toc, std::string(1024, '\0'));
  EXPECT_EQ(CountTree(folder_ / "tree"), 100'001u);
  for (int n = 0; n < 100'000; n += 97)
    ASSERT_EQ(access(Tree(fmt::format("d/file-{:06}", n)).c_str(), F_OK), 0) << n;
  EXPECT_NE(access(Tree("d/file-100000").c_str(), F_OK), 0);
  EXPECT_EQ(Run("fsck.erofs image > fsck.log 2>&1"), 0) << *ReadFile(folder_ / "fsck.log", 65536);
}

TEST_F(MountTest, LinkCountsOfDirectoriesAreRight) {
  MountToc(
      {{DirectoryEntry("a"), DirectoryEntry("a/b"), DirectoryEntry("a/c"), FileEntry("a/f", 0)}},
      std::string(1024, '\0'));
  EXPECT_EQ(Lstat(Tree("")).st_nlink, 3u);
  EXPECT_EQ(Lstat(Tree("")).st_mode & 07777, 0755u);
  EXPECT_EQ(Lstat(Tree("a")).st_nlink, 4u);
  EXPECT_EQ(Lstat(Tree("a/b")).st_nlink, 2u);
}

// Overlayfs would copy a file up before it is changed; a sealed one it leaves.
class SealTest : public MountTest, public testing::WithParamInterface<bool> {};
INSTANTIATE_TEST_SUITE_P(UnsealedAndSealed, SealTest, testing::Bool());

TEST_P(SealTest, SealedFilesCannotBeChangedAndAreNeverCopiedUp) {
  const bool sealed = GetParam();
  const blob::TestLayer layer = blob::BuildTestLayer(blob::SampleFiles(), false);
  MountToc(layer.toc, layer.plain.substr(0, layer.header.tar_length), sealed);
  ASSERT_EQ(Run("mount -t overlay overlay -o lowerdir=tree,upperdir=upper,workdir=work overlay"),
            0);
  const std::string file = (folder_ / "overlay/models/tiny/file-4096").string();
  EXPECT_EQ(*ReadFile(file, 4096), blob::TestBytes(4096, 4096));
  EXPECT_EQ(chmod(file.c_str(), 0600) != 0, sealed);
  EXPECT_EQ(chown(file.c_str(), 1, 1) != 0, sealed);
  EXPECT_EQ(truncate(file.c_str(), 1) != 0, sealed);
  const UniqueFd fd(open(file.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(!fd.valid(), sealed);
  EXPECT_EQ(rename(file.c_str(), (file + "-new").c_str()) != 0, sealed);
  EXPECT_EQ(unlink((file + (sealed ? "" : "-new")).c_str()) != 0, sealed);
  size_t copied = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder_ / "upper"))
    copied += !entry.is_directory();
  EXPECT_EQ(copied == 0, sealed);
}

TEST_F(MountTest, EveryAcceptedTocOfTheFuzzCorpusIsMountedAndListed) {
  constexpr uint64_t kTarLength = 1 << 20;
  size_t mounted = 0;
  for (const auto& input : fs::directory_iterator(TEST_SOURCE_DIR "/corpus/view")) {
    const auto bytes = ReadFile(input.path(), 1 << 20);
    ASSERT_TRUE(bytes.ok());
    const auto toc = archive::ParseToc(AsBytes(*bytes), kTarLength);
    if (!toc.ok()) continue;
    SCOPED_TRACE(input.path());
    MountToc(*toc, std::string(kTarLength, 'x'));
    ExpectTree(folder_ / "tree", *toc, std::string(kTarLength, 'x'), false);
    Unmount();
    ++mounted;
  }
  EXPECT_GE(mounted, 4u);
}

}  // namespace
}  // namespace kapsule::view
