// The table of contents of a layer: what a view is made from (docs/format.md).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/bytes.h"
#include "core/oci/digest.h"

namespace kapsule::archive {

enum class EntryType { kFile, kDirectory, kSymlink, kHardLink };

struct TocEntry {
  std::string path;  // relative; empty for the root
  EntryType type = EntryType::kFile;
  uint32_t mode = 0;  // permission bits
  uint32_t uid = 0, gid = 0;
  int64_t mtime = 0;
  uint64_t size = 0, offset = 0;  // kFile: where its data stands in the tar
  std::string link_target;        // kSymlink, kHardLink
  oci::Digest digest;             // kFile
};

// Entries with what most of them have in common; the rest is set by member.
TocEntry FileEntry(std::string path, uint64_t size);           // mode 0644
TocEntry DirectoryEntry(std::string path);                     // mode 0755
TocEntry SymlinkEntry(std::string path, std::string target);   // mode 0777
TocEntry HardLinkEntry(std::string path, std::string target);  // to a FILE's path

struct Toc {
  std::vector<TocEntry> entries;  // sorted by path
};

inline constexpr size_t kMaxTocBytes = 64 << 20;
inline constexpr size_t kMaxTocEntries = 500'000;
inline constexpr size_t kMaxPath = 4095;  // bytes; also of a link's target
inline constexpr size_t kMaxName = 255;   // bytes of one component
inline constexpr uint64_t kMaxTarLength = uint64_t{1} << 43;

void SortToc(Toc& toc);  // by path

// Deterministic. The length depends on no digest, so it is known in advance.
std::string SerializeToc(const Toc& toc);

// Parses and checks everything that docs/format.md demands of a TOC: types,
// sorted unique paths of sane components, present parents, links that lead to
// files, data ranges aligned to 512, inside `tar_length` and not overlapping.
// Fields that an entry's type has no use for must be empty, and extended
// attributes, which nothing serves yet, are refused rather than dropped. The
// TOC's padding is skipped.
// InvalidArgument names the entry and the rule.
absl::StatusOr<Toc> ParseToc(ByteSpan bytes, uint64_t tar_length);
absl::Status CheckToc(const Toc& toc, uint64_t tar_length);
// The rules that an entry keeps or breaks by itself.
absl::Status CheckTocEntry(const TocEntry& entry, uint64_t tar_length);

// The entry of `path` in a sorted TOC, or null. A binary search: the paths of a
// hostile TOC are chosen to collide in any hash table.
const TocEntry* FindEntry(const Toc& toc, std::string_view path);

// The directory of a path, empty at the top ("a/b" of "a/b/c"), and its last
// component ("c").
std::string_view ParentOf(std::string_view path);
std::string_view NameOf(std::string_view path);

}  // namespace kapsule::archive
