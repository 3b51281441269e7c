#include "core/content/layout_source.h"

#include <algorithm>

namespace kapsule::content {
namespace fs = std::filesystem;
namespace {

constexpr size_t kPieceBytes = 1 << 20;

std::string RefName(const oci::Descriptor& entry) {
  const auto name = entry.annotations.find(kRefNameAnnotation);
  return name == entry.annotations.end() ? "" : name->second;
}

// The bytes of a small blob, checked.
absl::StatusOr<std::string> ReadSmallBlob(const fs::path& layout, const oci::Digest& digest) {
  ASSIGN_OR_RETURN(std::string bytes,
                   ReadRegular(BlobPath(layout, digest), oci::kMaxManifestBytes));
  if (oci::Digest::Of(AsBytes(bytes)) != digest)
    return DataLoss("{}: the content has another digest", BlobPath(layout, digest).string());
  return bytes;
}

// A manifest that is named by its digest alone says itself what it is.
std::string MediaTypeOf(const std::string& bytes) {
  const absl::StatusOr<oci::Manifest> manifest = oci::ParseManifest(bytes);
  return manifest.ok() ? manifest->media_type : oci::kIndexType;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LayoutSource>> LayoutSource::Open(const fs::path& layout,
                                                                 std::string ref_name) {
  RETURN_IF_ERROR(CheckLayout(layout));
  return std::unique_ptr<LayoutSource>(new LayoutSource(layout, std::move(ref_name)));
}

absl::StatusOr<oci::Descriptor> LayoutSource::FindEntry() const {
  const fs::path path = layout_ / "index.json";
  ASSIGN_OR_RETURN(const std::string text, ReadRegular(path, oci::kMaxManifestBytes));
  absl::StatusOr<oci::Index> index = oci::ParseIndex(text);
  if (!index.ok()) return Annotate(index.status(), path.string());
  std::vector<oci::Descriptor>& entries = index->manifests;
  if (!ref_name_.empty())
    std::erase_if(entries, [&](const oci::Descriptor& e) { return RefName(e) != ref_name_; });
  if (entries.empty()) return NotFound("{}: no such image in the layout", name());
  if (entries.size() > 1)
    return InvalidArgument("{}: {} images in the layout, name one as oci:FOLDER:NAME", name(),
                           entries.size());
  return entries.front();
}

absl::StatusOr<oci::ImageSource::ManifestBytes> LayoutSource::GetManifest(
    const std::optional<oci::Digest>& digest) {
  if (digest) {
    ASSIGN_OR_RETURN(std::string bytes, ReadSmallBlob(layout_, *digest));
    std::string media_type = MediaTypeOf(bytes);
    return ManifestBytes{std::move(bytes), std::move(media_type)};
  }
  ASSIGN_OR_RETURN(const oci::Descriptor entry, FindEntry());
  ASSIGN_OR_RETURN(std::string bytes, ReadSmallBlob(layout_, entry.digest));
  return ManifestBytes{std::move(bytes), entry.media_type};
}

absl::Status LayoutSource::ReadBlob(const oci::Descriptor& blob,
                                    const std::function<absl::Status(ByteSpan)>& sink) {
  const fs::path path = BlobPath(layout_, blob.digest);
  ASSIGN_OR_RETURN(const std::unique_ptr<FileReader> file, OpenRegular(path));
  if (file->size() != blob.size)
    return DataLoss("{} has {} bytes, not {}", path.string(), file->size(), blob.size);
  Bytes buffer(std::min<uint64_t>(kPieceBytes, blob.size));
  oci::Hasher hasher;
  for (uint64_t at = 0; at < blob.size;) {
    const MutableByteSpan piece(buffer.data(), std::min<uint64_t>(buffer.size(), blob.size - at));
    RETURN_IF_ERROR(Annotate(file->ReadAt(at, piece), path.string()));
    hasher.Update(piece);
    RETURN_IF_ERROR(sink(piece));
    at += piece.size();
  }
  if (hasher.Finish() != blob.digest)
    return DataLoss("{}: the content has another digest", path.string());
  return absl::OkStatus();
}

}  // namespace kapsule::content
