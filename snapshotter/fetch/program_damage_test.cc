// kapsule-fetch with a cache that was damaged, or whose disk fails it: whoever reads
// gets the layer's bytes, or in time an error that says why.
#include <gmock/gmock.h>
#include <sys/mount.h>

#include <fstream>
#include <functional>

#include "snapshotter/fetch/test_program.h"

namespace kapsule::fetch {
namespace {

namespace fs = std::filesystem;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class DamageTest : public FetchProgramTest {
 protected:
  fs::path Cache() const { return folder_ / "cache"; }
  fs::path File() const { return Cache() / name_.digest.hex(); }
  fs::path List() const { return Cache() / (name_.digest.hex() + ".blocks"); }
  std::string Log() const { return ReadFile(folder_ / "fetch.log", 1 << 22).value_or(""); }

  // As kapsule-fuse reads: what fails its tags is doubted, and read again.
  bool ReadsRight(UniqueFd file, Range blocks) {
    auto reader = blob::LayerReader::Open(blob::DirectFileReader::Adopt(std::move(file)).value(),
                                          layer_.ref, layer_.key.Clone());
    if (!reader.ok()) return false;
    for (uint64_t block = blocks.first; block < blocks.end(); ++block) {
      const uint64_t offset = block * kMiB;
      std::string plain(std::min(kMiB, layer_.header.covered_length - offset), '\0');
      const MutableByteSpan out = std::as_writable_bytes(std::span(plain));
      if (!(*reader)->Read(offset, out).ok() &&
          !(Mended(block) && (*reader)->Read(offset, out).ok()))
        return false;
      if (plain != layer_.plain.substr(offset, plain.size())) return false;
    }
    return true;
  }
  bool Mended(uint64_t block) {
    fuse_->checked.clear();
    fuse_->Send(name_.digest, control::FetchSuspect{block});
    return fuse_->Until([&] { return fuse_->checked == std::vector<uint64_t>{block}; });
  }
  // A whole run: everything is got and read, and stored at the end.
  void RunOnce() {
    StartFetch();
    Connect();
    absl::StatusOr<UniqueFd> file = Open(image_);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(fuse_->Get(name_.digest, {0, blocks_}, absl::Seconds(20)));
    EXPECT_TRUE(ReadsRight(*std::move(file), {0, blocks_}));
    EXPECT_TRUE(fuse_->failed.empty());
    EXPECT_EQ(fetch_->End(SIGTERM), 0);
  }
  void Overwrite(const fs::path& path, uint64_t offset, const std::string& bytes) {
    const UniqueFd fd = OpenFile(path, O_WRONLY).value();
    ASSERT_EQ(pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
  }
  void Punch(uint64_t offset, uint64_t length) {
    const UniqueFd fd = OpenFile(File(), O_WRONLY).value();
    ASSERT_EQ(fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(offset), static_cast<off_t>(length)),
              0);
  }
};

TEST_F(DamageTest, WhateverHappensToABlobBetweenRunsItsBytesAreRight) {
  std::ofstream(folder_ / "precious") << "precious";
  ASSERT_EQ(chmod((folder_ / "precious").c_str(), 0666), 0);
  const uint64_t tags = archive::LayoutOf(layer_.header).tags.levels[0].offset;
  const std::vector<std::pair<const char*, std::function<void()>>> damages{
      {"cut short", [&] { fs::resize_file(File(), 5 * kMiB); }},
      {"longer", [&] { fs::resize_file(File(), name_.size + 4096); }},
      {"empty", [&] { fs::resize_file(File(), 0); }},
      {"of other bytes",
       [&] {
         for (const uint64_t block : {0, 3, 9}) Overwrite(File(), block * kMiB, "damage");
       }},
      {"of other tags", [&] { Overwrite(File(), tags + 7, "damage"); }},
      {"of another header", [&] { Overwrite(File(), name_.index.offset, "damage"); }},
      {"punched", [&] { Punch(2 * kMiB, 3 * kMiB + 4096); }},
      {"all hole", [&] { Punch(0, name_.size); }},
      {"not readable", [&] { fs::permissions(File(), fs::perms::none); }},
      {"somebody else's", [&] { ASSERT_EQ(chown(File().c_str(), 0, 0), 0); }},
      {"a folder", [&] { fs::remove(File()), fs::create_directory(File()); }},
      {"a link", [&] { fs::remove(File()), fs::create_symlink(folder_ / "precious", File()); }},
      {"a link to nothing", [&] { fs::remove(File()), fs::create_symlink("nothing", File()); }},
      {"a pipe", [&] { fs::remove(File()), mkfifo(File().c_str(), 0666); }},
      {"gone", [&] { fs::remove(File()); }},
  };
  RunOnce();
  for (const auto& [what, damage] : damages) {
    SCOPED_TRACE(what);
    damage();
    ASSERT_NO_FATAL_FAILURE(RunOnce());
  }
  EXPECT_EQ(ReadFile(folder_ / "precious", 100).value(), "precious");
}

TEST_F(DamageTest, WhateverHappensToAListBetweenRunsTheBytesAreRight) {
  std::ofstream(folder_ / "precious") << "precious";
  const fs::path fresh = List().string() + ".new";
  const std::vector<std::pair<const char*, std::function<void()>>> damages{
      {"cut short", [&] { fs::resize_file(List(), 50); }},
      {"of other bytes", [&] { Overwrite(List(), 72, "damage"); }},
      {"huge", [&] { fs::resize_file(List(), uint64_t{1} << 40); }},
      {"older than holes", [&] { Punch(0, 4 * kMiB); }},
      {"a folder", [&] { fs::remove(List()), fs::create_directory(List()); }},
      {"a link", [&] { fs::remove(List()), fs::create_symlink(folder_ / "precious", List()); }},
      {"a pipe", [&] { fs::remove(List()), mkfifo(List().c_str(), 0666); }},
      {"about to be a pipe", [&] { ASSERT_EQ(mkfifo(fresh.c_str(), 0666), 0); }},
      {"about to be a link", [&] { fs::create_symlink(folder_ / "precious", fresh); }},
      {"gone", [&] { fs::remove(List()); }},
  };
  RunOnce();
  for (const auto& [what, damage] : damages) {
    SCOPED_TRACE(what);
    damage();
    ASSERT_NO_FATAL_FAILURE(RunOnce());
    EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(List())));
  }
  EXPECT_EQ(ReadFile(folder_ / "precious", 100).value(), "precious");
}

TEST_F(DamageTest, AFullFolderInPlaceOfABlobIsTold) {
  RunOnce();
  fs::remove(File());
  fs::create_directories(File() / "full");
  StartFetch();
  const auto file = Open(image_);
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(Message(file.status()), HasSubstr(name_.digest.hex()));
  EXPECT_THAT(Message(file.status()), HasSubstr("not empty"));
  fs::remove_all(File());
  EXPECT_TRUE(Open(image_).ok());
}

TEST_F(DamageTest, ACacheThatMayNotBeWrittenIsTold) {
  StartFetch();
  Connect();
  absl::StatusOr<UniqueFd> file = Open(image_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(chown(Cache().c_str(), 0, 0), 0);
  ASSERT_TRUE(fuse_->Get(name_.digest, {0, 4}));  // into the file, which is open
  EXPECT_TRUE(ReadsRight(*std::move(file), {0, 4}));
  const auto again = Open(image_);
  ASSERT_FALSE(again.ok());
  EXPECT_THAT(Message(again.status()), HasSubstr(name_.digest.hex()));
  EXPECT_THAT(Message(again.status()), HasSubstr("Permission denied"));
  EXPECT_EQ(fetch_->End(SIGTERM), 0);
  EXPECT_THAT(Log(), HasSubstr(name_.digest.hex() + " is lost if the node stops now"));
  RunOnce();
}

// With the cache on a file system of its own.
class DamagedDiskTest : public DamageTest {
 protected:
  void TearDown() override {
    fetch_ = nullptr;
    umount2(Cache().c_str(), MNT_DETACH);
    DamageTest::TearDown();
  }
  void Mount(const char* options) {
    fs::create_directory(Cache());
    ASSERT_EQ(mount("kapsule-test", Cache().c_str(), "tmpfs", 0, options), 0) << strerror(errno);
  }
  void Remount(unsigned long flags, const char* options) {
    ASSERT_EQ(mount("kapsule-test", Cache().c_str(), "tmpfs", MS_REMOUNT | flags, options), 0)
        << strerror(errno);
  }
  bool GetAllInTheEnd() {
    return fuse_->Until(
        [&] {
          fuse_->Want(name_.digest, {0, blocks_});
          return fuse_->HasAll(name_.digest, {0, blocks_});
        },
        absl::Seconds(20));
  }
};

TEST_F(DamagedDiskTest, ADiskThatFillsUpIsToldAndWhatIsThereIsRight) {
  Mount("size=10m");
  StartFetch();
  Connect();
  absl::StatusOr<UniqueFd> file = Open(image_);
  ASSERT_TRUE(file.ok()) << file.status();
  fuse_->Want(name_.digest, {0, blocks_});
  ASSERT_TRUE(fuse_->Until([&] { return !fuse_->failed.empty(); }));
  EXPECT_EQ(fuse_->failed.front().why.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(fuse_->failed.front().why), HasSubstr("No space left"));
  EXPECT_THAT(Log(), ContainsRegex("fetch of " + name_.digest.text() + ": [^\n]*No space left"));
  const std::set<uint64_t> there = fuse_->have[name_.digest];
  EXPECT_FALSE(there.empty());
  for (const uint64_t block : there)
    EXPECT_TRUE(ReadsRight(UniqueFd(fcntl(file->get(), F_DUPFD_CLOEXEC, 0)), {block, 1})) << block;
  Remount(0, "size=64m");
  ASSERT_TRUE(GetAllInTheEnd());
  EXPECT_TRUE(ReadsRight(*std::move(file), {0, blocks_}));
  EXPECT_EQ(fetch_->End(SIGTERM), 0);
  RunOnce();
}

TEST_F(DamagedDiskTest, AFullDiskDoesNotKeepWhatWasStoredFromBeingRead) {
  Mount("size=64m");
  RunOnce();
  std::ofstream filler(Cache() / "filler", std::ios::binary);
  const std::string piece(kMiB, 'x');
  while (filler.write(piece.data(), static_cast<std::streamsize>(piece.size())).flush()) {
  }
  filler.close();
  fs::rename(Cache() / "filler", Cache() / std::string(64, 'f'));  // as if of the cache
  ASSERT_EQ(chown((Cache() / std::string(64, 'f')).c_str(), 65533, 65533), 0);
  StartFetch();
  Connect();
  absl::StatusOr<UniqueFd> file = Open(image_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(fuse_->Get(name_.digest, {0, blocks_}));
  EXPECT_EQ(Stats().blocks_fetched(), 0u);
  EXPECT_TRUE(ReadsRight(*std::move(file), {0, blocks_}));
}

TEST_F(DamagedDiskTest, AReadOnlyDiskIsToldAndHeals) {
  Mount("size=64m");
  RunOnce();
  Remount(MS_RDONLY, "size=64m");
  StartFetch();
  Connect();
  const absl::Time before = absl::Now();
  const auto file = Open(image_, 5'000);
  ASSERT_FALSE(file.ok());
  EXPECT_LT(absl::Now() - before, absl::Seconds(30));
  EXPECT_THAT(Message(file.status()), HasSubstr(name_.digest.hex()));
  EXPECT_THAT(Message(file.status()), HasSubstr("Read-only file system"));
  Remount(0, "size=64m");
  EXPECT_EQ(fetch_->End(SIGTERM), 0);
  RunOnce();
}

}  // namespace
}  // namespace kapsule::fetch
