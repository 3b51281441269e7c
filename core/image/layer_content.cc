#include "core/image/layer_content.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <tuple>

#include "core/base/file.h"

namespace kapsule::image {
namespace {
using archive::EntryType;
using archive::TocEntry;

TocEntry Entry(const std::string& path, EntryType type, uint32_t mode, int64_t mtime) {
  TocEntry entry;
  entry.path = path;
  entry.type = type;
  entry.mode = mode;
  entry.mtime = mtime;
  return entry;
}

TocEntry Directory(const std::string& path, int64_t mtime) {
  return Entry(path, EntryType::kDirectory, 0755, mtime);
}

TocEntry File(const FileContent& file, int64_t mtime) {
  TocEntry entry = Entry(file.path, EntryType::kFile, 0444, mtime);
  entry.size = file.size;
  return entry;
}

// Its attributes are those of `file`.
TocEntry HardLink(const std::string& path, const std::string& file) {
  TocEntry entry = Entry(path, EntryType::kHardLink, 0, 0);
  entry.link_target = file;
  return entry;
}

// What changes when somebody writes to a file.
auto VersionOf(const struct stat& st) {
  return std::tuple(st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
}

absl::Status SendPieces(const FileReader& file, archive::TarWriter& tar) {
  Bytes buffer(kPieceSize);
  for (uint64_t at = 0; at < file.size(); at += buffer.size()) {
    const MutableByteSpan piece =
        MutableByteSpan(buffer).first(std::min<uint64_t>(buffer.size(), file.size() - at));
    RETURN_IF_ERROR(file.ReadAt(at, piece));
    RETURN_IF_ERROR(tar.Write(piece));
  }
  return absl::OkStatus();
}

absl::Status SendSource(const model::WeightFile& source, archive::TarWriter& tar) {
  const std::string name = source.source.string();
  ASSIGN_OR_RETURN(const std::unique_ptr<FileReader> file, FileReader::Open(source.source));
  struct stat before, after;
  if (fstat(file->fd(), &before) != 0) return ErrnoStatus(errno, name);
  if (file->size() != source.size)
    return FailedPrecondition("{}: {} bytes, {} when the build began: it must not change", name,
                              file->size(), source.size);
  posix_fadvise(file->fd(), 0, 0, POSIX_FADV_SEQUENTIAL);  // a hint; may fail
  const absl::Status sent = SendPieces(*file, tar);
  if (fstat(file->fd(), &after) != 0) return ErrnoStatus(errno, name);
  if (VersionOf(before) != VersionOf(after))
    return FailedPrecondition("{}: changed while it was read", name);
  if (!sent.ok()) return Annotate(sent, name);
  return absl::OkStatus();
}

LayerContent ContentOf(const std::vector<model::PlannedFile>& files, int64_t mtime) {
  LayerContent layer{.mtime = mtime};
  for (const model::PlannedFile& file : files)
    layer.files.push_back(
        {.path = file.path,
         .size = file.content.size(),
         .send = [&file](archive::TarWriter& tar) { return tar.Write(AsBytes(file.content)); },
         .links = [&file](const oci::Digest&) { return file.links; }});
  return layer;
}

std::vector<std::string> ParentsOf(const LayerContent& layer) {
  std::vector<std::string> paths;
  for (const FileContent& file : layer.files) {
    paths.push_back(file.path);
    std::ranges::copy(file.links(oci::Digest()), std::back_inserter(paths));
  }
  return model::ParentDirectories(paths);
}

}  // namespace

absl::Status LayerContent::Measure(LayerOptions& options) const {
  archive::Toc toc;
  for (const std::string& path : directories) toc.entries.push_back(Directory(path, mtime));
  for (const FileContent& file : files) {
    toc.entries.push_back(File(file, mtime));
    for (const std::string& link : file.links(oci::Digest()))
      toc.entries.push_back(HardLink(link, file.path));
  }
  ASSIGN_OR_RETURN(options.tar_length, archive::PlanTar(toc.entries));
  options.toc_length = archive::SerializeToc(toc).size();
  return absl::OkStatus();
}

absl::StatusOr<archive::Toc> LayerContent::WriteTar(const archive::Sink& sink) const {
  archive::TarWriter tar(sink);
  for (const std::string& path : directories) RETURN_IF_ERROR(tar.Add(Directory(path, mtime)));
  for (const FileContent& file : files) {
    RETURN_IF_ERROR(tar.BeginFile(File(file, mtime)));
    RETURN_IF_ERROR(file.send(tar));
    ASSIGN_OR_RETURN(const oci::Digest digest, tar.EndFile());
    if (file.digest != nullptr) *file.digest = digest;
    for (const std::string& link : file.links(digest))
      RETURN_IF_ERROR(tar.Add(HardLink(link, file.path)));
  }
  return tar.Finish();
}

LayerContent SkeletonContent(const std::vector<std::string>& directories,
                             const std::vector<model::PlannedFile>& files, int64_t mtime) {
  LayerContent layer = ContentOf(files, mtime);
  layer.directories = directories;
  return layer;
}

LayerContent WeightContent(const model::PlannedWeight& weight, int64_t mtime, oci::Digest* digest) {
  LayerContent layer{.mtime = mtime};
  layer.files.push_back(
      {.path = weight.path,
       .size = weight.file.size,
       .send = [&weight](archive::TarWriter& tar) { return SendSource(weight.file, tar); },
       .links = [&weight](const oci::Digest& of) { return weight.Links(of); },
       .digest = digest});
  layer.directories = ParentsOf(layer);
  return layer;
}

LayerContent SmallContent(const std::vector<model::PlannedFile>& files, int64_t mtime) {
  LayerContent layer = ContentOf(files, mtime);
  layer.directories = ParentsOf(layer);
  return layer;
}

}  // namespace kapsule::image
