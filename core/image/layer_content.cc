#include "core/image/layer_content.h"

#include <algorithm>

#include "core/image/source_file.h"

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

absl::Status SendPieces(SourceFile& file, archive::TarWriter& tar, LayerWriter& layer) {
  while (file.left() > 0) {
    ASSIGN_OR_RETURN(const MutableByteSpan room, layer.Room());
    ASSIGN_OR_RETURN(const size_t n, file.Read(room));
    RETURN_IF_ERROR(tar.Pass(n));
    RETURN_IF_ERROR(layer.Filled(n));
  }
  return absl::OkStatus();
}

// The pieces are read to where the layer is made from them, and hashed there.
absl::StatusOr<oci::Digest> SendSource(const model::WeightFile& source, archive::TarWriter& tar,
                                       LayerWriter& layer) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SourceFile> file,
                   SourceFile::Open(source.source, source.size));
  layer.BeginContent();
  const absl::Status sent = SendPieces(*file, tar, layer);
  RETURN_IF_ERROR(file->CheckUnchanged());
  if (!sent.ok()) return Annotate(sent, source.source.string());
  ASSIGN_OR_RETURN(const oci::Digest digest, layer.EndContent());
  return tar.EndFile(digest);
}

absl::StatusOr<oci::Digest> SendText(const std::string& text, archive::TarWriter& tar) {
  RETURN_IF_ERROR(tar.Write(AsBytes(text)));
  return tar.EndFile();
}

LayerContent ContentOf(const std::vector<model::PlannedFile>& files, int64_t mtime) {
  LayerContent layer{.mtime = mtime};
  for (const model::PlannedFile& file : files)
    layer.files.push_back({.path = file.path,
                           .size = file.content.size(),
                           .send = [&file](archive::TarWriter& tar,
                                           LayerWriter&) { return SendText(file.content, tar); },
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

absl::StatusOr<archive::Toc> LayerContent::WriteTar(LayerWriter& layer) const {
  archive::TarWriter tar([&layer](ByteSpan bytes) { return layer.Write(bytes); });
  for (const std::string& path : directories) RETURN_IF_ERROR(tar.Add(Directory(path, mtime)));
  for (const FileContent& file : files) {
    RETURN_IF_ERROR(tar.BeginFile(File(file, mtime)));
    ASSIGN_OR_RETURN(const oci::Digest digest, file.send(tar, layer));
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
       .send = [&weight](archive::TarWriter& tar,
                         LayerWriter& layer) { return SendSource(weight.file, tar, layer); },
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
