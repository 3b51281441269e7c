// One layer as a disk image: EROFS metadata ‖ decrypted tar (docs/format.md,
// "View").
#pragma once

#include <memory>
#include <string>

#include "core/archive/toc.h"
#include "core/blob/layer_reader.h"
#include "core/view/image.h"

namespace kapsule::view {

struct Metadata {
  std::string bytes;        // superblock, inodes, directories, symlinks; a multiple of 64 KiB
  uint32_t block_size = 0;  // 4096, or 512 where a file's data is not 4 KiB-aligned
};

struct MetadataOptions {
  // Makes regular files immutable to every container: owner and group
  // 0xFFFFFFFF, mode 0444 plus x bits.
  bool seal_files = false;
};

// At most 200 bytes and its name or target for most entries; a hostile TOC gets
// no more than this.
inline constexpr uint64_t kMaxMetadata = 128 << 20;

// EROFS metadata for a checked TOC. Deterministic.
//   ResourceExhausted  more than 32-bit block addresses or kMaxMetadata allow;
//                      known before the metadata is allocated
absl::StatusOr<Metadata> BuildMetadata(const archive::Toc& toc, uint64_t tar_length,
                                       const MetadataOptions& options);

// A layer that is in memory or on disk, and its image. Thread-safe.
class View {
 public:
  // Reads the layer's TOC and builds the image.
  static absl::StatusOr<std::unique_ptr<View>> Open(std::unique_ptr<blob::LayerReader> layer);

  uint64_t size() const { return image_->size(); }
  const Image& image() const { return *image_; }
  const blob::LayerReader& layer() const { return *layer_; }
  // Fills `out` from `offset` on. Bytes past the tar are zeros, and so is what
  // Image::ClearGaps() clears.
  //   DataLoss, OutOfRange as LayerReader::Read
  absl::Status Read(uint64_t offset, MutableByteSpan out) const;

 private:
  View(std::unique_ptr<blob::LayerReader> layer, std::unique_ptr<Image> image)
      : layer_(std::move(layer)), image_(std::move(image)) {}
  absl::Status ReadTar(uint64_t at, MutableByteSpan out) const;

  const std::unique_ptr<blob::LayerReader> layer_;
  const std::unique_ptr<Image> image_;
};

}  // namespace kapsule::view
