#include "core/archive/toc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "kapsule/v1/toc.pb.h"

namespace kapsule::archive {
namespace {

using testing::HasSubstr;

constexpr uint64_t kTarLength = 1 << 20;

TocEntry FileAt(std::string path, uint64_t offset, uint64_t size) {
  TocEntry entry = FileEntry(std::move(path), size);
  entry.offset = offset;
  entry.digest = oci::Digest::Of(AsBytes("x"));
  return entry;
}

Toc Sample() {
  Toc toc;
  toc.entries = {
      DirectoryEntry(""),      DirectoryEntry("a"),          HardLinkEntry("a/again", "a/file"),
      FileAt("a/empty", 0, 0), FileAt("a/file", 4096, 5000), SymlinkEntry("a/link", "../b"),
      FileAt("b", 12288, 512)};
  toc.entries[4].mode = 07777;
  toc.entries[4].uid = toc.entries[4].gid = 0xFFFFFFFF;
  toc.entries[4].mtime = -1;
  return toc;
}

// The error of a sample that `spoil` has changed.
std::string ErrorOf(const std::function<void(std::vector<TocEntry>&)>& spoil) {
  Toc toc = Sample();
  spoil(toc.entries);
  const absl::Status status = CheckToc(toc, kTarLength);
  EXPECT_EQ(status.ok() || absl::IsInvalidArgument(status), true) << status;
  return Message(status);
}

TEST(TocTest, KeepsEveryFieldThroughSerialization) {
  const Toc toc = Sample();
  const auto parsed = ParseToc(AsBytes(SerializeToc(toc)), kTarLength);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->entries.size(), toc.entries.size());
  for (size_t i = 0; i < toc.entries.size(); ++i) {
    const TocEntry &a = parsed->entries[i], &b = toc.entries[i];
    EXPECT_EQ(std::tie(a.path, a.type, a.mode, a.uid, a.gid, a.mtime, a.size, a.offset,
                       a.link_target, a.digest),
              std::tie(b.path, b.type, b.mode, b.uid, b.gid, b.mtime, b.size, b.offset,
                       b.link_target, b.digest));
  }
}

TEST(TocTest, LengthDoesNotDependOnDigests) {
  Toc toc = Sample();
  const size_t length = SerializeToc(toc).size();
  for (TocEntry& entry : toc.entries) entry.digest = oci::Digest();
  EXPECT_EQ(SerializeToc(toc).size(), length);
}

TEST(TocTest, AcceptsAnEmptyTocAndOneWithoutRoot) {
  EXPECT_TRUE(ParseToc({}, kTarLength).ok());
  EXPECT_EQ(ErrorOf([](auto& e) { e.erase(e.begin()); }), "");
}

TEST(TocTest, RefusesPathsThatAreNotPlain) {
  for (const std::string path : {"/z", "z/", "z//z", "z/.", "z/..", "./z", "..", ".", "/"})
    EXPECT_THAT(ErrorOf([&](auto& e) { e.back() = FileAt(path, 0, 0); }), HasSubstr("component"))
        << path;
  EXPECT_THAT(ErrorOf([](auto& e) { e.back().path = std::string("z\0z", 3); }), HasSubstr("NUL"));
  EXPECT_THAT(ErrorOf([](auto& e) { e[0] = FileAt("", 0, 0); }), HasSubstr("path of 0 bytes"));
}

TEST(TocTest, BoundsNamesAndPaths) {
  EXPECT_EQ(ErrorOf([](auto& e) { e.back().path = std::string(255, 'z'); }), "");
  EXPECT_THAT(ErrorOf([](auto& e) { e.back().path = std::string(256, 'z'); }),
              HasSubstr("component"));
  // A chain of directories whose deepest path has exactly `length` bytes.
  const auto deep = [](size_t length) {
    return ErrorOf([length](auto& e) {
      e.clear();
      std::string path;
      while (path.size() < length) {
        if (!path.empty()) path += '/';
        path += std::string(std::min<size_t>(254, length - path.size()), 'd');
        e.push_back(DirectoryEntry(path));
      }
    });
  };
  EXPECT_EQ(deep(4095), "");
  EXPECT_THAT(deep(4096), HasSubstr("path of 4096 bytes"));
}

TEST(TocTest, RefusesUnsortedAndRepeatedPaths) {
  EXPECT_THAT(ErrorOf([](auto& e) { std::swap(e[4], e[5]); }), HasSubstr("sorted"));
  EXPECT_THAT(ErrorOf([](auto& e) { e.push_back(e.back()); }), HasSubstr("sorted"));
}

TEST(TocTest, SortsByUnsignedBytes) {
  EXPECT_EQ(ErrorOf([](auto& e) { e.push_back(FileAt("\xff", 0, 0)); }), "");
}

TEST(TocTest, WantsAParentDirectoryForEachEntry) {
  EXPECT_THAT(ErrorOf([](auto& e) { e.erase(e.begin() + 1); }), HasSubstr("parent"));
  EXPECT_THAT(ErrorOf([](auto& e) { e.push_back(FileAt("b/x", 0, 0)); }), HasSubstr("parent"));
  EXPECT_THAT(ErrorOf([](auto& e) { e.insert(e.begin() + 6, FileAt("a/link/x", 0, 0)); }),
              HasSubstr("parent"));
}

TEST(TocTest, LetsHardLinksLeadToFilesOnly) {
  for (const std::string target : {"a", "a/link", "a/again", "nowhere"})
    EXPECT_THAT(ErrorOf([&](auto& e) { e[2].link_target = target; }), HasSubstr("hard link"))
        << target;
  EXPECT_THAT(ErrorOf([](auto& e) { e[2].link_target = "../a/file"; }), HasSubstr("component"));
}

TEST(TocTest, BoundsSymlinkTargets) {
  EXPECT_EQ(ErrorOf([](auto& e) { e[5].link_target = std::string(4095, '/'); }), "");
  for (const std::string& target : {std::string(), std::string(4096, 'x'), std::string(1, '\0')})
    EXPECT_THAT(ErrorOf([&](auto& e) { e[5].link_target = target; }), HasSubstr("link target"));
}

TEST(TocTest, KeepsDataAlignedInsideTheTarAndApart) {
  EXPECT_EQ(ErrorOf([](auto& e) { e.back() = FileAt("b", kTarLength - 512, 512); }), "");
  EXPECT_THAT(ErrorOf([](auto& e) { e.back() = FileAt("b", kTarLength - 512, 513); }),
              HasSubstr("of a tar of"));
  EXPECT_THAT(ErrorOf([](auto& e) { e.back() = FileAt("b", ~uint64_t{511}, 512); }),
              HasSubstr("of a tar of"));
  EXPECT_THAT(ErrorOf([](auto& e) { e.back() = FileAt("b", 12289, 1); }), HasSubstr("512"));
  EXPECT_THAT(ErrorOf([](auto& e) { e.back() = FileAt("b", 8704, 1); }), HasSubstr("overlap"));
  EXPECT_EQ(ErrorOf([](auto& e) { e.back() = FileAt("b", 9216, 1); }), "");
}

TEST(TocTest, RefusesFieldsThatATypeHasNoUseFor) {
  EXPECT_THAT(ErrorOf([](auto& e) { e[1].size = 1; }), HasSubstr("no file"));
  EXPECT_THAT(ErrorOf([](auto& e) { e[2].offset = 512; }), HasSubstr("no file"));
  EXPECT_THAT(ErrorOf([](auto& e) { e[4].link_target = "b"; }), HasSubstr("no link"));
  EXPECT_THAT(ErrorOf([](auto& e) { e[4].mode = 010000; }), HasSubstr("permission bits"));
}

// The error of one serialized entry that `set` has changed.
std::string ProtoErrorOf(const std::function<void(v1::TocEntry&)>& set) {
  v1::Toc toc;
  v1::TocEntry& entry = *toc.add_entries();
  entry.set_path("f");
  entry.set_type(v1::TocEntry::FILE);
  entry.set_digest(std::string(32, 'd'));
  set(entry);
  return Message(ParseToc(AsBytes(toc.SerializeAsString()), kTarLength).status());
}

TEST(TocTest, RefusesWhatItDoesNotServe) {
  EXPECT_EQ(ProtoErrorOf([](auto&) {}), "");
  EXPECT_THAT(ProtoErrorOf([](auto& e) { e.add_xattrs()->set_name("user.x"); }),
              HasSubstr("extended attributes"));
  EXPECT_THAT(ProtoErrorOf([](auto& e) { e.set_type(v1::TocEntry::UNSPECIFIED); }),
              HasSubstr("type"));
  EXPECT_THAT(ProtoErrorOf([](auto& e) { e.set_type(static_cast<v1::TocEntry::Type>(9)); }),
              HasSubstr("type"));
  for (const size_t size : {0, 31, 33})
    EXPECT_THAT(ProtoErrorOf([&](auto& e) { e.set_digest(std::string(size, 'd')); }),
                HasSubstr("digest"));
  // Field 99, and field 3 as bytes.
  for (const std::string unknown : {"\x98\x06\x01", "\x1a\x01x"})
    EXPECT_THAT(ProtoErrorOf([&](auto& e) { ASSERT_TRUE(e.MergeFromString(unknown)); }),
                HasSubstr("unknown field"));
}

TEST(TocTest, SkipsPaddingWhereverItStands) {
  const std::string good = SerializeToc(Sample());
  v1::Toc one;
  one.set_padding(std::string(1000, 'p'));
  const std::string padding = one.SerializeAsString();
  for (const std::string& bytes : {padding + good, good + padding, padding + good + padding,
                                   good + std::string("\x12\x00", 2)}) {
    const auto toc = ParseToc(AsBytes(bytes), kTarLength);
    ASSERT_TRUE(toc.ok()) << toc.status();
    EXPECT_EQ(SerializeToc(*toc), good) << "it is not kept";
  }
  v1::Toc both;
  ASSERT_TRUE(both.ParseFromString(good));
  both.set_padding("between");
  EXPECT_TRUE(ParseToc(AsBytes(both.SerializeAsString()), kTarLength).ok());
}

TEST(TocTest, RefusesPaddingThatIsCutOffAndOtherFields) {
  const std::string good = SerializeToc(Sample());
  const auto refuses = [&good](std::string_view tail) {
    return absl::IsInvalidArgument(
        ParseToc(AsBytes(good + std::string(tail)), kTarLength).status());
  };
  using namespace std::string_view_literals;
  EXPECT_FALSE(refuses("\x12\x03ppp"sv));
  EXPECT_TRUE(refuses("\x12\x04ppp"sv));
  EXPECT_TRUE(refuses("\x12"sv));
  EXPECT_TRUE(refuses("\x12\xff\xff\xff\xff\x0fppp"sv));
  EXPECT_TRUE(refuses("\x10\x03"sv)) << "padding as a number";
  EXPECT_TRUE(refuses("\x1a\x03ppp"sv)) << "field 3";
}

TEST(TocTest, TakesPaddingUpToTheLimitOfTheToc) {
  std::string bytes("\x12\xfb\xff\xff\x1f", 5);  // 64 MiB less these bytes
  bytes.resize(kMaxTocBytes);
  EXPECT_TRUE(ParseToc(AsBytes(bytes), kTarLength).ok());
  bytes += std::string("\x12\x00", 2);
  EXPECT_THAT(Message(ParseToc(AsBytes(bytes), kTarLength).status()), HasSubstr("toc of"));
}

TEST(TocTest, FindsTheEntriesThatAreThere) {
  const Toc toc = Sample();
  for (const TocEntry& entry : toc.entries) EXPECT_EQ(FindEntry(toc, entry.path), &entry);
  for (const char* path : {"!", "a/", "a/fil", "a/filf", "z"})
    EXPECT_EQ(FindEntry(toc, path), nullptr) << path;
  EXPECT_EQ(FindEntry({}, ""), nullptr);
}

TEST(TocTest, RefusesTooManyEntriesBeforeItStoresThem) {
  std::string bytes;
  for (size_t i = 0; i < kMaxTocEntries + 1; ++i) bytes += std::string("\x0a\x02\x10\x02", 4);
  EXPECT_THAT(Message(ParseToc(AsBytes(bytes), kTarLength).status()),
              HasSubstr("more than 500000 entries"));
}

TEST(TocTest, RefusesEntriesLargerThanAnyHonestOne) {
  EXPECT_THAT(ProtoErrorOf([](auto& e) { e.set_path(std::string(20000, 'p')); }),
              HasSubstr("toc entry 0 has"));
}

TEST(TocTest, SurvivesEveryTruncationAndFlip) {
  const std::string good = SerializeToc(Sample());
  for (size_t i = 0; i < good.size(); ++i) {
    (void)ParseToc(AsBytes(good.substr(0, i)), kTarLength);
    for (const int bit : {0x01, 0x80, 0xff}) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ bit);
      const auto parsed = ParseToc(AsBytes(bad), kTarLength);
      if (parsed.ok()) {
        EXPECT_TRUE(CheckToc(*parsed, kTarLength).ok());
      }
    }
  }
}

}  // namespace
}  // namespace kapsule::archive
