#include "core/archive/toc.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <utility>

#include "kapsule/v1/toc.pb.h"

namespace kapsule::archive {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Two paths, a digest and numbers, with room to spare: an entry that is larger
// breaks a rule anyhow, and is refused before memory is spent on it.
constexpr size_t kMaxEntryBytes = 2 * kMaxPath + 1024;
// Tags of the fields of Toc, both length-delimited.
constexpr uint32_t kEntriesField = (1 << 3) | 2, kPaddingField = (2 << 3) | 2;

v1::TocEntry::Type TypeToProto(EntryType type) {
  switch (type) {
    case EntryType::kFile:
      return v1::TocEntry::FILE;
    case EntryType::kDirectory:
      return v1::TocEntry::DIRECTORY;
    case EntryType::kSymlink:
      return v1::TocEntry::SYMLINK;
    case EntryType::kHardLink:
      return v1::TocEntry::HARD_LINK;
  }
  return v1::TocEntry::UNSPECIFIED;
}

absl::StatusOr<EntryType> TypeFromProto(v1::TocEntry::Type type) {
  switch (type) {
    case v1::TocEntry::FILE:
      return EntryType::kFile;
    case v1::TocEntry::DIRECTORY:
      return EntryType::kDirectory;
    case v1::TocEntry::SYMLINK:
      return EntryType::kSymlink;
    case v1::TocEntry::HARD_LINK:
      return EntryType::kHardLink;
    default:
      return InvalidArgument("unknown entry type {}", static_cast<int>(type));
  }
}

v1::TocEntry EntryToProto(const TocEntry& entry) {
  v1::TocEntry proto;
  proto.set_path(entry.path);
  proto.set_type(TypeToProto(entry.type));
  proto.set_mode(entry.mode);
  proto.set_uid(entry.uid);
  proto.set_gid(entry.gid);
  proto.set_mtime(entry.mtime);
  proto.set_size(entry.size);
  proto.set_offset(entry.offset);
  proto.set_link_target(entry.link_target);
  if (entry.type == EntryType::kFile)
    proto.set_digest(entry.digest.raw().data(), entry.digest.raw().size());
  return proto;
}

// Whether an entry that could be parsed has a field that this version does not know.
bool HasUnknownField(const uint8_t* data, int length) {
  using Entry = v1::TocEntry;
  CodedInputStream in(data, length);
  while (const uint32_t tag = in.ReadTag()) {
    switch (tag) {
      case Entry::kPathFieldNumber << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
      case Entry::kTypeFieldNumber << 3 | WireFormatLite::WIRETYPE_VARINT:
      case Entry::kModeFieldNumber << 3 | WireFormatLite::WIRETYPE_VARINT:
      case Entry::kUidFieldNumber << 3 | WireFormatLite::WIRETYPE_VARINT:
      case Entry::kGidFieldNumber << 3 | WireFormatLite::WIRETYPE_VARINT:
      case Entry::kMtimeFieldNumber << 3 | WireFormatLite::WIRETYPE_VARINT:
      case Entry::kSizeFieldNumber << 3 | WireFormatLite::WIRETYPE_VARINT:
      case Entry::kOffsetFieldNumber << 3 | WireFormatLite::WIRETYPE_VARINT:
      case Entry::kLinkTargetFieldNumber << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
      case Entry::kDigestFieldNumber << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
      case Entry::kXattrsFieldNumber << 3 | WireFormatLite::WIRETYPE_LENGTH_DELIMITED:
        if (WireFormatLite::SkipField(&in, tag)) break;
        [[fallthrough]];
      default:
        return true;
    }
  }
  return false;
}

absl::StatusOr<TocEntry> EntryFromProto(const v1::TocEntry& proto) {
  if (proto.xattrs_size() != 0) return InvalidArgument("extended attributes are not supported");
  TocEntry entry;
  ASSIGN_OR_RETURN(entry.type, TypeFromProto(proto.type()));
  entry.path = proto.path();
  entry.mode = proto.mode();
  entry.uid = proto.uid();
  entry.gid = proto.gid();
  entry.mtime = proto.mtime();
  entry.size = proto.size();
  entry.offset = proto.offset();
  entry.link_target = proto.link_target();
  oci::Digest::Raw digest{};
  if (proto.digest().size() != (entry.type == EntryType::kFile ? digest.size() : 0))
    return InvalidArgument("digest of {} bytes", proto.digest().size());
  std::copy_n(AsBytes(proto.digest()).data(), proto.digest().size(), digest.data());
  entry.digest = oci::Digest(digest);
  return entry;
}

}  // namespace

TocEntry FileEntry(std::string path, uint64_t size) {
  TocEntry entry;
  entry.path = std::move(path);
  entry.mode = 0644;
  entry.size = size;
  return entry;
}

TocEntry DirectoryEntry(std::string path) {
  TocEntry entry;
  entry.path = std::move(path);
  entry.type = EntryType::kDirectory;
  entry.mode = 0755;
  return entry;
}

TocEntry SymlinkEntry(std::string path, std::string target) {
  TocEntry entry;
  entry.path = std::move(path);
  entry.type = EntryType::kSymlink;
  entry.mode = 0777;
  entry.link_target = std::move(target);
  return entry;
}

TocEntry HardLinkEntry(std::string path, std::string target) {
  TocEntry entry;
  entry.path = std::move(path);
  entry.type = EntryType::kHardLink;
  entry.link_target = std::move(target);
  return entry;
}

std::string_view ParentOf(std::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == path.npos ? std::string_view() : path.substr(0, slash);
}

std::string_view NameOf(std::string_view path) { return path.substr(path.rfind('/') + 1); }

const TocEntry* FindEntry(const Toc& toc, std::string_view path) {
  const auto at = std::lower_bound(
      toc.entries.begin(), toc.entries.end(), path,
      [](const TocEntry& entry, std::string_view p) { return std::string_view(entry.path) < p; });
  return at != toc.entries.end() && at->path == path ? &*at : nullptr;
}

void SortToc(Toc& toc) {
  std::sort(toc.entries.begin(), toc.entries.end(),
            [](const TocEntry& a, const TocEntry& b) { return a.path < b.path; });
}

std::string SerializeToc(const Toc& toc) {
  v1::Toc proto;
  for (const TocEntry& entry : toc.entries) *proto.add_entries() = EntryToProto(entry);
  return proto.SerializeAsString();
}

// The outer message is walked by hand, entry by entry: protobuf would make a
// hundred bytes of memory from each two bytes of empty entries.
absl::StatusOr<Toc> ParseToc(ByteSpan bytes, uint64_t tar_length) {
  if (bytes.size() > kMaxTocBytes) return InvalidArgument("toc of {} bytes", bytes.size());
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  CodedInputStream in(data, static_cast<int>(bytes.size()));
  Toc toc;
  v1::TocEntry proto;
  while (static_cast<size_t>(in.CurrentPosition()) < bytes.size()) {
    uint32_t length = 0;
    const uint32_t tag = in.ReadTag();
    if ((tag != kEntriesField && tag != kPaddingField) || !in.ReadVarint32(&length))
      return InvalidArgument("toc is malformed at byte {}", in.CurrentPosition());
    const size_t at = static_cast<size_t>(in.CurrentPosition());
    if (tag == kPaddingField) {
      if (length > bytes.size() - at) return InvalidArgument("toc padding of {} bytes", length);
      in.Skip(static_cast<int>(length));
      continue;
    }
    if (length > kMaxEntryBytes || length > bytes.size() - at)
      return InvalidArgument("toc entry {} has {} bytes", toc.entries.size(), length);
    if (toc.entries.size() == kMaxTocEntries)
      return InvalidArgument("toc of more than {} entries", kMaxTocEntries);
    if (!proto.ParseFromArray(data + at, static_cast<int>(length)))
      return InvalidArgument("toc entry {} is malformed", toc.entries.size());
    absl::StatusOr<TocEntry> entry = HasUnknownField(data + at, static_cast<int>(length))
                                         ? InvalidArgument("unknown field")
                                         : EntryFromProto(proto);
    if (!entry.ok())
      return Annotate(entry.status(), fmt::format("toc entry {}", toc.entries.size()));
    toc.entries.push_back(*std::move(entry));
    in.Skip(static_cast<int>(length));
  }
  RETURN_IF_ERROR(CheckToc(toc, tar_length));
  return toc;
}

}  // namespace kapsule::archive
