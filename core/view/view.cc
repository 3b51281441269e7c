#include "core/view/view.h"

#include <algorithm>
#include <utility>

namespace kapsule::view {

absl::StatusOr<std::unique_ptr<View>> View::Open(std::unique_ptr<blob::LayerReader> layer) {
  ASSIGN_OR_RETURN(const archive::Toc toc, layer->ReadToc());
  const archive::IndexHeader& header = layer->header();
  ASSIGN_OR_RETURN(std::unique_ptr<Image> image,
                   Image::Make(toc, header.tar_length, header.encrypted));
  return std::unique_ptr<View>(new View(std::move(layer), std::move(image)));
}

absl::Status View::Read(uint64_t offset, MutableByteSpan out) const {
  if (offset > size() || out.size() > size() - offset) {
    std::fill(out.begin(), out.end(), std::byte{0});
    return absl::OutOfRangeError(
        fmt::format("{} bytes at byte {} of a view of {}", out.size(), offset, size()));
  }
  const uint64_t metadata = image_->metadata_size();
  const size_t before_tar = std::min<uint64_t>(out.size(), metadata - std::min(offset, metadata));
  absl::Status status;
  if (before_tar > 0) status = image_->ReadMetadata(offset, out.first(before_tar));
  if (status.ok() && before_tar < out.size())
    status = ReadTar(offset + before_tar - metadata, out.subspan(before_tar));
  if (!status.ok()) std::fill(out.begin(), out.end(), std::byte{0});
  return status;
}

absl::Status View::ReadTar(uint64_t at, MutableByteSpan out) const {
  const uint64_t begin = std::min(at, image_->tar_length());
  const size_t n = std::min<uint64_t>(out.size(), image_->tar_length() - begin);
  RETURN_IF_ERROR(layer_->Read(begin, out.first(n)));
  std::fill(out.begin() + n, out.end(), std::byte{0});
  return image_->ClearGaps(at, out);
}

}  // namespace kapsule::view
