#include "core/archive/tar_writer.h"

#include <archive.h>
#include <archive_entry.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <map>

#include "core/base/file.h"

namespace kapsule::archive {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

std::string Content(const TocEntry& entry) { return std::string(entry.size, 'c'); }

struct Written {
  std::string bytes;
  Toc toc;
};

absl::StatusOr<Written> WriteTar(const std::vector<TocEntry>& entries) {
  Written written;
  TarWriter writer([&](ByteSpan bytes) {
    written.bytes += AsText(bytes);
    return absl::OkStatus();
  });
  for (const TocEntry& entry : entries) {
    if (entry.type != EntryType::kFile) {
      RETURN_IF_ERROR(writer.Add(entry));
      continue;
    }
    RETURN_IF_ERROR(writer.BeginFile(entry));
    const std::string content = Content(entry);
    RETURN_IF_ERROR(writer.Write(AsBytes(content).first(content.size() / 3)));
    RETURN_IF_ERROR(writer.Write(AsBytes(content).subspan(content.size() / 3)));
    ASSIGN_OR_RETURN(const oci::Digest digest, writer.EndFile());
    EXPECT_EQ(digest, oci::Digest::Of(AsBytes(content)));
  }
  ASSIGN_OR_RETURN(written.toc, writer.Finish());
  EXPECT_EQ(writer.length(), written.bytes.size());
  return written;
}

// Paths at every limit of the ustar header, large ids and odd times.
std::vector<TocEntry> Shapes() {
  std::vector<TocEntry> entries = {DirectoryEntry(""), DirectoryEntry("d")};
  for (const size_t size :
       {0, 1, 511, 512, 513, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 1})
    entries.push_back(FileEntry(fmt::format("d/size-{}", size), size));
  for (const size_t length : {97, 98, 99, 100, 101, 155, 255})
    entries.push_back(FileEntry(std::string(length, 'n'), length));
  std::string deep;
  for (int i = 0; i < 12; ++i) {
    deep += (deep.empty() ? "" : "/") + fmt::format("{:02}", i) + std::string(28, 'p');
    entries.push_back(DirectoryEntry(deep));
    entries.push_back(FileEntry(deep + "/file", 10));
  }
  entries.push_back(DirectoryEntry(std::string(254, 'v')));
  entries.push_back(FileEntry(std::string(254, 'v') + "/" + std::string(255, 'w'), 7));
  entries.push_back(SymlinkEntry("short", "d"));
  entries.push_back(SymlinkEntry("long", std::string(1000, 't')));
  entries.push_back(HardLinkEntry("d/hard", "d/size-1048577"));
  entries.push_back(HardLinkEntry("d/hard-to-long", std::string(255, 'n')));
  entries.push_back(FileEntry("caf\xc3\xa9", 3));
  for (size_t i = 0; i < entries.size(); ++i) entries[i].mtime = 1'700'000'000 + int64_t(i);
  entries[3].uid = entries[3].gid = 2'097'151;
  entries[4].uid = entries[4].gid = 2'097'152;
  entries[5].mtime = -5;
  entries[6].mtime = int64_t{1} << 33;
  entries[7].mode = 07755;
  return entries;
}

class TarToolsTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/kapsule-tar-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    fs::create_directory(folder_ / "out");
    const auto written = WriteTar(Shapes());
    ASSERT_TRUE(written.ok()) << written.status();
    written_ = *written;
    ASSERT_TRUE(WriteFileAtomic(folder_ / "t.tar", AsBytes(written_.bytes), 0600).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }

  // Runs a shell command in the folder; returns what it printed, errors too.
  std::string Run(const std::string& command) {
    FILE* pipe = popen(("cd " + folder_.string() + " && (" + command + ") 2>&1").c_str(), "r");
    std::string output;
    for (int c; (c = getc(pipe)) != EOF;) output += static_cast<char>(c);
    const int status = pclose(pipe);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << command << "\n" << output;
    return output;
  }

  // Everything that a reader which knows pax extracts below out/.
  void ExpectTree() {
    for (const TocEntry& entry : written_.toc.entries) {
      const fs::path path = folder_ / "out" / entry.path;
      struct stat st;
      ASSERT_EQ(lstat(path.c_str(), &st), 0) << path;
      if (entry.type == EntryType::kSymlink) {
        EXPECT_EQ(fs::read_symlink(path), entry.link_target);
        continue;
      }
      EXPECT_EQ(S_ISDIR(st.st_mode), entry.type == EntryType::kDirectory) << path;
      EXPECT_EQ(st.st_mode & 07777, entry.mode) << path;
      EXPECT_EQ(st.st_uid, entry.uid) << path;
      if (entry.type != EntryType::kDirectory) {
        EXPECT_EQ(st.st_mtime, entry.mtime) << path;
      }
      if (entry.type == EntryType::kFile) {
        EXPECT_EQ(*ReadFile(path, 1 << 22), Content(entry));
      }
      if (entry.type == EntryType::kHardLink) {
        EXPECT_GE(st.st_nlink, 2u) << path;
      }
    }
  }

  fs::path folder_;
  Written written_;
};

TEST_F(TarToolsTest, GnuTarExtractsEverythingWithoutAWord) {
  EXPECT_EQ(Run("tar --warning=no-timestamp --numeric-owner -xpf t.tar -C out"), "");
  ExpectTree();
}

TEST_F(TarToolsTest, PythonExtractsEverything) {
  EXPECT_EQ(Run("python3 -c \"import tarfile; t = tarfile.open('t.tar'); "
                "t.extractall('out', numeric_owner=True)\""),
            "");
  ExpectTree();
}

TEST_F(TarToolsTest, BusyboxListsAndExtractsAllThatNeedsNoPax) {
  Run("busybox tar -xf t.tar -C out d/size-1048577 d/hard");
  EXPECT_TRUE(*ReadFile(folder_ / "out/d/size-1048577", 1 << 22) == std::string(1048577, 'c'));
  const std::string list = Run("busybox tar -tf t.tar");
  EXPECT_THAT(list, HasSubstr("d/size-1048577\n"));
  for (const TocEntry& entry : Shapes())
    if (entry.path.size() <= 200 && entry.type == EntryType::kFile && entry.path[0] != 'n') {
      EXPECT_THAT(list, HasSubstr(entry.path + "\n"));
    }
}

TEST_F(TarToolsTest, LibarchiveSeesTheEntriesOfTheToc) {
  struct archive* reader = archive_read_new();
  archive_read_support_format_tar(reader);
  ASSERT_EQ(archive_read_open_memory(reader, written_.bytes.data(), written_.bytes.size()),
            ARCHIVE_OK);
  std::map<std::string, TocEntry> expected;
  for (const TocEntry& entry : written_.toc.entries) expected[entry.path] = entry;
  struct archive_entry* member;
  size_t seen = 0;
  int result;
  while ((result = archive_read_next_header(reader, &member)) == ARCHIVE_OK) {
    std::string path = archive_entry_pathname(member);
    if (path.ends_with('/')) path.pop_back();
    if (path == ".") path.clear();
    ASSERT_TRUE(expected.contains(path)) << path;
    const TocEntry& entry = expected[path];
    EXPECT_EQ(archive_entry_perm(member), entry.mode) << path;
    EXPECT_EQ(archive_entry_uid(member), entry.uid) << path;
    EXPECT_EQ(archive_entry_gid(member), entry.gid) << path;
    EXPECT_EQ(archive_entry_mtime(member), entry.mtime) << path;
    EXPECT_EQ(archive_entry_size(member), static_cast<int64_t>(entry.size)) << path;
    if (entry.type == EntryType::kSymlink) {
      EXPECT_EQ(archive_entry_symlink(member), entry.link_target);
    }
    if (entry.type == EntryType::kHardLink) {
      EXPECT_EQ(archive_entry_hardlink(member), entry.link_target);
    }
    ++seen;
  }
  EXPECT_EQ(result, ARCHIVE_EOF) << archive_error_string(reader);
  EXPECT_EQ(seen, expected.size());
  archive_read_free(reader);
}

TEST(TarWriterTest, PutsDataWhereTheTocSays) {
  const auto written = WriteTar(Shapes());
  ASSERT_TRUE(written.ok()) << written.status();
  for (const TocEntry& entry : written->toc.entries) {
    if (entry.type != EntryType::kFile) continue;
    EXPECT_EQ(entry.offset % (entry.size >= kLargeFile ? 65536 : 4096), 0u) << entry.path;
    EXPECT_EQ(written->bytes.substr(entry.offset, entry.size), Content(entry)) << entry.path;
    EXPECT_EQ(entry.digest, oci::Digest::Of(AsBytes(Content(entry))));
  }
}

TEST(TarWriterTest, PlansTheLengthThatItWrites) {
  std::vector<TocEntry> entries;
  for (const TocEntry& entry : Shapes()) {
    entries.push_back(entry);
    if (entry.path.size() > 400) continue;  // its parents come later
    std::vector<TocEntry> planned = entries;
    const auto length = PlanTar(planned);
    ASSERT_TRUE(length.ok()) << length.status();
    const auto written = WriteTar(entries);
    ASSERT_TRUE(written.ok()) << written.status();
    ASSERT_EQ(*length, written->bytes.size()) << entry.path;
    Toc toc{planned};
    SortToc(toc);
    for (size_t i = 0; i < toc.entries.size(); ++i)
      ASSERT_EQ(toc.entries[i].offset, written->toc.entries[i].offset);
    ASSERT_EQ(SerializeToc(toc).size(), SerializeToc(written->toc).size());
  }
}

TEST(TarWriterTest, AlignsAtEveryDistanceToTheBoundary) {
  // Small files move the position in steps of 512 bytes, pax records by more.
  for (int before = 0; before < 140; ++before) {
    std::vector<TocEntry> entries;
    for (int i = 0; i < before; ++i) entries.push_back(DirectoryEntry(fmt::format("{:03}", i)));
    TocEntry large = FileEntry("large", kLargeFile);
    if (before % 2) large.mtime = -1;  // a record of its own
    entries.push_back(large);
    const auto written = WriteTar(entries);
    ASSERT_TRUE(written.ok()) << written.status();
    ASSERT_EQ(written->toc.entries.back().offset % 65536, 0u) << before;
  }
}

TEST(TarWriterTest, IsDeterministic) {
  EXPECT_EQ(WriteTar(Shapes())->bytes, WriteTar(Shapes())->bytes);
}

TEST(TarWriterTest, EndsWithTwoZeroBlocks) {
  const auto empty = WriteTar({});
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty->bytes, std::string(1024, '\0'));
}

TEST(TarWriterTest, WritesSizesBeyondOctalAsPax) {
  TarLayout layout;
  TocEntry small = FileEntry("s", (uint64_t{1} << 33) - 1), large = FileEntry("l", 1ull << 33);
  EXPECT_THAT(*layout.Place(small), testing::Not(HasSubstr(" size=")));
  EXPECT_THAT(*layout.Place(large), HasSubstr("19 size=8589934592\n"));
  EXPECT_EQ(layout.length() % 512, 0u);
}

TEST(TarWriterTest, RefusesATarOfMoreThanTheFormatHas) {
  TarLayout layout;
  TocEntry most = FileEntry("a", kMaxTarLength - 65536), more = DirectoryEntry("b");
  ASSERT_TRUE(layout.Place(most).ok());
  EXPECT_EQ(layout.length(), kMaxTarLength);
  const auto refused = layout.Place(more);
  EXPECT_TRUE(absl::IsInvalidArgument(refused.status()));
  EXPECT_THAT(Message(refused.status()), HasSubstr("the limit of 8796093022208"));
}

TEST(TarWriterTest, RefusesAFileThatHasChanged) {
  const auto writer = [] { return TarWriter([](ByteSpan) { return absl::OkStatus(); }); };
  {
    TarWriter w = writer();
    ASSERT_TRUE(w.BeginFile(FileEntry("f", 2)).ok());
    EXPECT_TRUE(absl::IsFailedPrecondition(w.Write(AsBytes("abc"))));
  }
  {
    TarWriter w = writer();
    ASSERT_TRUE(w.BeginFile(FileEntry("f", 2)).ok());
    ASSERT_TRUE(w.Write(AsBytes("a")).ok());
    EXPECT_TRUE(absl::IsFailedPrecondition(w.EndFile().status()));
  }
  {
    TarWriter w = writer();
    TocEntry entry = FileEntry("f", 2);
    entry.digest = oci::Digest::Of(AsBytes("xy"));
    ASSERT_TRUE(w.BeginFile(entry).ok());
    ASSERT_TRUE(w.Write(AsBytes("ab")).ok());
    EXPECT_TRUE(absl::IsFailedPrecondition(w.EndFile().status()));
  }
}

TEST(TarWriterTest, CountsContentThatReachesTheTarByAnotherWay) {
  std::string bytes;
  TarWriter writer([&](ByteSpan part) {
    bytes += AsText(part);
    return absl::OkStatus();
  });
  const std::string content(1000, 'c');
  const oci::Digest digest = oci::Digest::Of(AsBytes(content));
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.Pass(1)));
  ASSERT_TRUE(writer.BeginFile(FileEntry("f", 1000)).ok());
  for (const size_t part : {600, 400}) {
    bytes += content.substr(0, part);
    ASSERT_TRUE(writer.Pass(part).ok());
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.Pass(1)));
  ASSERT_EQ(writer.EndFile(digest).value(), digest);
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.EndFile(digest).status()));
  const Toc toc = writer.Finish().value();
  const Written same = WriteTar({FileEntry("f", 1000)}).value();
  EXPECT_EQ(bytes, same.bytes);
  EXPECT_EQ(SerializeToc(toc), SerializeToc(same.toc));
}

TEST(TarWriterTest, RefusesEntriesThatNoTocMayHold) {
  const std::vector<std::vector<TocEntry>> bad = {
      {FileEntry("../x", 1)},
      {FileEntry("x/y", 1)},
      {FileEntry("x", 1), FileEntry("x", 1)},
      {HardLinkEntry("x", "y")},
      {HardLinkEntry("x", "y"), FileEntry("y", 1)},
      {SymlinkEntry("x", "")},
  };
  for (std::vector<TocEntry> entries : bad) {
    EXPECT_TRUE(absl::IsInvalidArgument(WriteTar(entries).status())) << entries[0].path;
    EXPECT_TRUE(absl::IsInvalidArgument(PlanTar(entries).status())) << entries[0].path;
  }
}

TEST(TarWriterTest, PassesOnTheErrorOfItsSink) {
  size_t room = 1000;
  TarWriter writer([&](ByteSpan bytes) -> absl::Status {
    if (bytes.size() > room) return ResourceExhausted("full");
    room -= bytes.size();
    return absl::OkStatus();
  });
  ASSERT_TRUE(writer.Add(DirectoryEntry("a")).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(writer.Add(DirectoryEntry("b"))));
}

}  // namespace
}  // namespace kapsule::archive
