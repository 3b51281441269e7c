#include "core/archive/tar_layout.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace kapsule::archive {
namespace {

// Fields of the ustar header (POSIX pax, "ustar Interchange Format").
struct Ustar {
  char name[100];
  char mode[8];
  char uid[8];
  char gid[8];
  char size[12];
  char mtime[12];
  char chksum[8];
  char typeflag;
  char linkname[100];
  char magic[6];
  char version[2];
  char uname[32];
  char gname[32];
  char devmajor[8];
  char devminor[8];
  char prefix[155];
  char pad[12];
};
static_assert(sizeof(Ustar) == kTarBlock);

template <size_t N>
bool FitsOctal(uint64_t value, const char (&)[N]) {
  return value < uint64_t{1} << (3 * (N - 1));
}

// Octal with leading zeros and a NUL; 0 where a pax record says the number.
template <size_t N>
void PutOctal(char (&field)[N], uint64_t value) {
  if (!FitsOctal(value, field)) value = 0;
  for (size_t i = N - 1; i-- > 0; value >>= 3) field[i] = static_cast<char>('0' + (value & 7));
}

// As much of `text` as fits; a full field has no NUL.
template <size_t N>
void PutText(char (&field)[N], std::string_view text) {
  std::memcpy(field, text.data(), std::min(N, text.size()));
}

void PutChecksum(Ustar& header) {
  std::memset(header.chksum, ' ', sizeof(header.chksum));
  uint64_t sum = 0;
  for (const std::byte b : std::as_bytes(std::span(&header, 1))) sum += static_cast<uint8_t>(b);
  char field[7];
  PutOctal(field, sum);
  field[6] = '\0';
  std::memcpy(header.chksum, field, sizeof(field));
}

std::string AsString(const Ustar& header) {
  return {reinterpret_cast<const char*>(&header), sizeof(header)};
}

// Splits a path that is too long for `name` at a slash, so that readers which
// know no pax records find it too. False where no slash does it.
bool PutPath(Ustar& header, std::string_view path) {
  if (path.size() <= sizeof(header.name)) {
    PutText(header.name, path);
    return true;
  }
  const size_t slash = path.substr(0, sizeof(header.prefix) + 1).rfind('/', path.size() - 2);
  if (slash == path.npos || path.size() - slash - 1 > sizeof(header.name)) {
    PutText(header.name, path);
    return false;
  }
  PutText(header.prefix, path.substr(0, slash));
  PutText(header.name, path.substr(slash + 1));
  return true;
}

// A pax record: its length in decimal, which counts itself, "key=value\n".
std::string Record(std::string_view key, std::string_view value) {
  const size_t rest = key.size() + value.size() + 3;
  size_t length = rest + 1;
  while (std::to_string(length).size() + rest != length)
    length = std::to_string(length).size() + rest;
  return fmt::format("{} {}={}\n", length, key, value);
}

// A record of exactly `length` bytes that says nothing; 12 is the least.
constexpr size_t kLeastComment = sizeof("12 comment=\n") - 1;
std::string CommentRecord(size_t length) {
  const std::string head = fmt::format("{} comment=", length);
  return head + std::string(length - head.size() - 1, ' ') + "\n";
}

char TypeFlag(EntryType type) {
  switch (type) {
    case EntryType::kDirectory:
      return '5';
    case EntryType::kSymlink:
      return '2';
    case EntryType::kHardLink:
      return '1';
    case EntryType::kFile:
      break;
  }
  return '0';
}

// The member's own header; what does not fit goes to `records`.
Ustar MemberHeader(const TocEntry& entry, std::string& records) {
  Ustar header{};
  std::string path = entry.path.empty() ? "." : entry.path;
  if (entry.type == EntryType::kDirectory) path += '/';
  if (!PutPath(header, path)) records += Record("path", path);
  PutText(header.linkname, entry.link_target);
  if (entry.link_target.size() > sizeof(header.linkname))
    records += Record("linkpath", entry.link_target);

  PutOctal(header.mode, entry.mode);
  PutOctal(header.uid, entry.uid);
  PutOctal(header.gid, entry.gid);
  PutOctal(header.size, entry.size);
  PutOctal(header.mtime, static_cast<uint64_t>(entry.mtime));
  PutOctal(header.devmajor, 0);
  PutOctal(header.devminor, 0);
  if (!FitsOctal(entry.uid, header.uid)) records += Record("uid", std::to_string(entry.uid));
  if (!FitsOctal(entry.gid, header.gid)) records += Record("gid", std::to_string(entry.gid));
  if (!FitsOctal(entry.size, header.size)) records += Record("size", std::to_string(entry.size));
  if (!FitsOctal(static_cast<uint64_t>(entry.mtime), header.mtime))
    records += Record("mtime", std::to_string(entry.mtime));

  header.typeflag = TypeFlag(entry.type);
  PutText(header.magic, "ustar");
  PutText(header.version, "00");
  PutChecksum(header);
  return header;
}

Ustar PaxHeader(size_t body) {
  Ustar header{};
  PutText(header.name, "PaxHeaders/member");
  PutOctal(header.mode, 0644);
  PutOctal(header.uid, 0);
  PutOctal(header.gid, 0);
  PutOctal(header.size, body);
  PutOctal(header.mtime, 0);
  PutOctal(header.devmajor, 0);
  PutOctal(header.devminor, 0);
  header.typeflag = 'x';
  PutText(header.magic, "ustar");
  PutText(header.version, "00");
  PutChecksum(header);
  return header;
}

uint64_t AlignmentOf(const TocEntry& entry) {
  if (entry.type != EntryType::kFile || entry.size == 0) return kTarBlock;
  return entry.size < kLargeFile ? 4096 : 65536;
}

// Lengthens `records` by a comment so that a member at byte `at` of the tar,
// pax header and all, has its data on a multiple of `alignment`.
void PadRecords(std::string& records, uint64_t at, uint64_t alignment) {
  if (records.empty() && (at + kTarBlock) % alignment == 0) return;
  const uint64_t headers = at + 2 * kTarBlock;
  if (!records.empty() && AlignUp(headers + records.size(), kTarBlock) % alignment == 0) return;
  const uint64_t body = AlignUp(headers + records.size() + kLeastComment, alignment) - headers;
  records += CommentRecord(body - records.size());
}

}  // namespace

absl::Status TarLayout::TakeFileAttributes(TocEntry& link) const {
  const auto file = files_.find(link.link_target);
  if (file == files_.end())
    return InvalidArgument("hard link to {}, which is no file before it", link.link_target);
  link.mode = file->second.mode;
  link.uid = file->second.uid;
  link.gid = file->second.gid;
  link.mtime = file->second.mtime;
  return absl::OkStatus();
}

absl::StatusOr<std::string> TarLayout::Place(TocEntry& entry) {
  entry.offset = 0;
  absl::Status status = CheckTocEntry(entry, kMaxTarLength);
  if (status.ok() && entry.type == EntryType::kHardLink) status = TakeFileAttributes(entry);
  if (!status.ok()) return Annotate(status, "tar member " + entry.path);

  std::string records;
  const Ustar header = MemberHeader(entry, records);
  PadRecords(records, length_, AlignmentOf(entry));
  std::string bytes;
  if (!records.empty()) {
    bytes = AsString(PaxHeader(records.size())) + records;
    bytes.resize(AlignUp(bytes.size(), kTarBlock));
  }
  bytes += AsString(header);

  const uint64_t data = length_ + bytes.size();
  const uint64_t end = data + AlignUp(entry.size, kTarBlock);
  if (end > kMaxTarLength)
    return InvalidArgument("tar of {} bytes up to {}, more than the limit of {}: use more layers",
                           end, entry.path, kMaxTarLength);
  if (entry.size != 0) entry.offset = data;
  length_ = end;
  if (entry.type == EntryType::kFile)
    files_[entry.path] = {entry.mode, entry.uid, entry.gid, entry.mtime};
  return bytes;
}

absl::StatusOr<uint64_t> PlanTar(std::span<TocEntry> entries) {
  TarLayout layout;
  for (TocEntry& entry : entries) RETURN_IF_ERROR(layout.Place(entry).status());
  const uint64_t length = layout.length() + 2 * kTarBlock;
  Toc toc{{entries.begin(), entries.end()}};
  SortToc(toc);
  RETURN_IF_ERROR(CheckToc(toc, length));
  return length;
}

}  // namespace kapsule::archive
