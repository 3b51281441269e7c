// What of a view is not the tar, in a sealed memory file: it costs a process no
// heap, and a successor gets it unchanged.
#pragma once

#include <memory>
#include <vector>

#include "core/archive/toc.h"
#include "core/base/file.h"

namespace kapsule::view {

// The file, all little-endian:
//    0  "KAPSVIEW"
//    8  u32 version 1; 12 u32 block size
//   16  u64 size of the metadata, a multiple of 64 KiB
//   24  u64 bytes of it that are stored: zeros at its end are not
//   32  u64 length of the tar
//   40  u64 number of file ends
//   48  u64 offset of the metadata, 64
//   56  u32 offset of the file ends, from the end of the metadata, 0 to 7
//   60  u32 flags; bit 0: files are sealed
// Then the metadata, zeros up to a multiple of 8, the file ends (u64, sorted).
// A file end is where the data of a file ends in the tar, inside of a block.
//
// Thread-safe.
class Image {
 public:
  // The metadata and file ends of a checked TOC. Errors as BuildMetadata(), and
  //   ResourceExhausted  no memory file
  static absl::StatusOr<std::unique_ptr<Image>> Make(const archive::Toc& toc, uint64_t tar_length,
                                                     bool seal_files);
  // A file that another process made; looks at all of it but the metadata.
  //   InvalidArgument  not sealed, or not such a file
  //   Unimplemented    of another version
  static absl::StatusOr<std::unique_ptr<Image>> Adopt(UniqueFd fd);

  int fd() const { return fd_.get(); }
  uint64_t stored_size() const { return layout_.file_size(); }  // bytes of memory
  uint32_t block_size() const { return layout_.block_size; }
  bool seal_files() const { return layout_.seal_files; }

  // Bytes of the view: metadata, then the tar, padded to 4 KiB.
  uint64_t size() const { return layout_.metadata_size + AlignUp(layout_.tar_length, 4096); }
  uint64_t metadata_size() const { return layout_.metadata_size; }
  uint64_t tar_length() const { return layout_.tar_length; }

  // Fills `out` from `offset` of the metadata on.
  //   OutOfRange  not inside [0, metadata_size())
  absl::Status ReadMetadata(uint64_t offset, MutableByteSpan out) const;
  // Zeroes what in `out`, the tar's bytes from `tar_offset` on, lies between the
  // end of a file and the end of its last block, whatever the tar has there: the
  // kernel maps whole blocks into programs. Where `out` reaches beyond the tar,
  // its bytes there are left alone.
  absl::Status ClearGaps(uint64_t tar_offset, MutableByteSpan out) const;

 private:
  struct Layout {
    uint32_t block_size = 0;
    bool seal_files = false;
    uint64_t metadata_size = 0, metadata_stored = 0;
    uint64_t tar_length = 0;
    uint64_t ends = 0;  // their number
    uint64_t ends_offset() const;
    uint64_t file_size() const { return ends_offset() + ends * sizeof(uint64_t); }
  };
  Image(UniqueFd fd, const Layout& layout) : fd_(std::move(fd)), layout_(layout) {}
  static absl::StatusOr<Layout> ReadLayout(int fd);
  static std::string EncodeLayout(const Layout& layout);
  // Checks the file ends and keeps the first of each window.
  absl::Status ScanEnds();
  // The window of at most kWindow file ends from `first` on.
  absl::Status ReadEnds(uint64_t first, std::span<uint64_t> ends) const;

  // File ends that are read at once.
  static constexpr size_t kWindow = 512;

  const UniqueFd fd_;
  const Layout layout_;
  std::vector<uint64_t> window_starts_;
};

}  // namespace kapsule::view
