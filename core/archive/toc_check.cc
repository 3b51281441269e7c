// The rules of a TOC (docs/format.md, "TOC").
#include <algorithm>

#include "core/archive/toc.h"
#include "core/base/printable.h"

namespace kapsule::archive {
namespace {

std::string Shown(std::string_view path) { return PrintableAscii(path, 120); }

// A relative path of sane components.
absl::Status CheckPath(std::string_view path) {
  if (path.empty() || path.size() > kMaxPath)
    return InvalidArgument("path of {} bytes", path.size());
  if (path.find('\0') != path.npos) return InvalidArgument("path holds a NUL");
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view name = path.substr(begin, end - begin);
    if (name.empty() || name.size() > kMaxName || name == "." || name == "..")
      return InvalidArgument("path {} has the component \"{}\"", Shown(path), Shown(name));
    begin = end + 1;
  }
  return absl::OkStatus();
}

absl::Status CheckSymlinkTarget(std::string_view target) {
  if (target.empty() || target.size() > kMaxPath)
    return InvalidArgument("link target of {} bytes", target.size());
  if (target.find('\0') != target.npos) return InvalidArgument("link target holds a NUL");
  return absl::OkStatus();
}

absl::Status CheckData(const TocEntry& entry, uint64_t tar_length) {
  if (entry.type != EntryType::kFile) {
    if (entry.size != 0 || entry.offset != 0 || entry.digest != oci::Digest())
      return InvalidArgument("data in an entry that is no file");
    return absl::OkStatus();
  }
  if (entry.offset % 512 != 0)
    return InvalidArgument("data at byte {}, no multiple of 512", entry.offset);
  if (entry.offset > tar_length || entry.size > tar_length - entry.offset)
    return InvalidArgument("{} bytes of data at byte {} of a tar of {}", entry.size, entry.offset,
                           tar_length);
  return absl::OkStatus();
}

// The rules between entries: `previous` stands before `entry`, or is null.
absl::Status CheckNeighbours(const Toc& toc, const TocEntry& entry, const TocEntry* previous) {
  const std::string_view parent = ParentOf(entry.path);
  const bool same_parent = previous && ParentOf(previous->path) == parent;
  if (!parent.empty() && !same_parent) {
    const TocEntry* found = FindEntry(toc, parent);
    if (!found || found->type != EntryType::kDirectory)
      return InvalidArgument("its parent is no directory of the layer");
  }
  if (entry.type == EntryType::kHardLink) {
    const TocEntry* found = FindEntry(toc, entry.link_target);
    if (!found || found->type != EntryType::kFile)
      return InvalidArgument("hard link to {}, which is no file of the layer",
                             Shown(entry.link_target));
  }
  return absl::OkStatus();
}

absl::Status CheckOverlaps(const Toc& toc) {
  std::vector<const TocEntry*> files;
  for (const TocEntry& entry : toc.entries)
    if (entry.size != 0) files.push_back(&entry);
  std::sort(files.begin(), files.end(),
            [](const TocEntry* a, const TocEntry* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < files.size(); ++i)
    if (files[i]->offset < files[i - 1]->offset + files[i - 1]->size)
      return InvalidArgument("data of {} and {} overlap", Shown(files[i - 1]->path),
                             Shown(files[i]->path));
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTocEntry(const TocEntry& entry, uint64_t tar_length) {
  const bool is_root = entry.path.empty() && entry.type == EntryType::kDirectory;
  if (!is_root) RETURN_IF_ERROR(CheckPath(entry.path));
  if (entry.mode > 07777) return InvalidArgument("mode {:o} is no permission bits", entry.mode);
  if (entry.type == EntryType::kSymlink) RETURN_IF_ERROR(CheckSymlinkTarget(entry.link_target));
  if (entry.type == EntryType::kHardLink) RETURN_IF_ERROR(CheckPath(entry.link_target));
  if ((entry.type == EntryType::kFile || entry.type == EntryType::kDirectory) &&
      !entry.link_target.empty())
    return InvalidArgument("link target in an entry that is no link");
  return CheckData(entry, tar_length);
}

absl::Status CheckToc(const Toc& toc, uint64_t tar_length) {
  if (toc.entries.size() > kMaxTocEntries)
    return InvalidArgument("toc of more than {} entries", kMaxTocEntries);
  for (size_t i = 0; i < toc.entries.size(); ++i) {
    const TocEntry& entry = toc.entries[i];
    absl::Status status = CheckTocEntry(entry, tar_length);
    if (status.ok() && i > 0 && entry.path <= toc.entries[i - 1].path)
      status = InvalidArgument("paths are not sorted, or repeated");
    if (!status.ok())
      return Annotate(status, fmt::format("toc entry {} ({})", i, Shown(entry.path)));
  }
  for (size_t i = 0; i < toc.entries.size(); ++i) {
    const TocEntry& entry = toc.entries[i];
    const absl::Status status = CheckNeighbours(toc, entry, i ? &toc.entries[i - 1] : nullptr);
    if (!status.ok())
      return Annotate(status, fmt::format("toc entry {} ({})", i, Shown(entry.path)));
  }
  return CheckOverlaps(toc);
}

}  // namespace kapsule::archive
