#include "core/view/view.h"

#include <algorithm>
#include <utility>

namespace kapsule::view {

namespace {

std::vector<uint64_t> FileEnds(const archive::Toc& toc, uint32_t block_size) {
  std::vector<uint64_t> ends;
  for (const archive::TocEntry& entry : toc.entries)
    if (entry.size % block_size != 0) ends.push_back(entry.offset + entry.size);
  std::sort(ends.begin(), ends.end());
  return ends;
}

}  // namespace

View::View(std::unique_ptr<blob::LayerReader> layer, Metadata metadata,
           std::vector<uint64_t> file_ends)
    : layer_(std::move(layer)), metadata_(std::move(metadata)), file_ends_(std::move(file_ends)) {}

absl::StatusOr<std::unique_ptr<View>> View::Open(std::unique_ptr<blob::LayerReader> layer) {
  ASSIGN_OR_RETURN(const Bytes toc, layer->ReadTocBytes());
  return Make(std::move(layer), toc);
}

absl::StatusOr<std::unique_ptr<View>> View::Make(std::unique_ptr<blob::LayerReader> layer,
                                                 ByteSpan toc_bytes) {
  ASSIGN_OR_RETURN(const archive::Toc toc, layer->ParseToc(toc_bytes));
  const archive::IndexHeader& header = layer->header();
  ASSIGN_OR_RETURN(Metadata metadata,
                   BuildMetadata(toc, header.tar_length, {.seal_files = header.encrypted}));
  std::vector<uint64_t> ends = FileEnds(toc, metadata.block_size);
  return std::unique_ptr<View>(new View(std::move(layer), std::move(metadata), std::move(ends)));
}

uint64_t View::size() const {
  return metadata_.bytes.size() + AlignUp(layer_->header().tar_length, 4096);
}

absl::Status View::Read(uint64_t offset, MutableByteSpan out) const {
  if (offset > size() || out.size() > size() - offset) {
    std::fill(out.begin(), out.end(), std::byte{0});
    return absl::OutOfRangeError(
        fmt::format("{} bytes at byte {} of a view of {}", out.size(), offset, size()));
  }
  const MutableByteSpan all = out;
  const std::string& metadata = metadata_.bytes;
  if (offset < metadata.size()) {
    const size_t n = std::min<uint64_t>(out.size(), metadata.size() - offset);
    std::memcpy(out.data(), metadata.data() + offset, n);
    offset += n;
    out = out.subspan(n);
  }
  if (out.empty()) return absl::OkStatus();

  const absl::Status status = ReadTar(offset - metadata.size(), out);
  if (!status.ok()) std::fill(all.begin(), all.end(), std::byte{0});
  return status;
}

absl::Status View::ReadTar(uint64_t at, MutableByteSpan out) const {
  const uint64_t tar_length = layer_->header().tar_length;
  const uint64_t begin = std::min(at, tar_length);
  const size_t n = std::min<uint64_t>(out.size(), tar_length - begin);
  RETURN_IF_ERROR(layer_->Read(begin, out.first(n)));
  std::fill(out.begin() + n, out.end(), std::byte{0});

  const uint64_t end = at + out.size();
  const uint32_t block = metadata_.block_size;
  auto file_end = std::upper_bound(file_ends_.begin(), file_ends_.end(), AlignDown(at, block));
  for (; file_end != file_ends_.end() && *file_end < end; ++file_end) {
    const uint64_t from = std::max(*file_end, at), to = std::min(AlignUp(*file_end, block), end);
    std::fill(out.begin() + (from - at), out.begin() + (to - at), std::byte{0});
  }
  return absl::OkStatus();
}

}  // namespace kapsule::view
