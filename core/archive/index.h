// The index behind the covered range of a layer: block digests, chunk tags,
// their trees and the header (docs/format.md, "Index"). Nothing here knows a
// key: tags are opaque 16-byte entries.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/base/bytes.h"
#include "core/oci/digest.h"

namespace kapsule::archive {

inline constexpr uint32_t kPageSize = 64 * 1024;
inline constexpr size_t kHeaderSize = 256;
inline constexpr size_t kDigestSize = 32;
inline constexpr size_t kTagSize = 16;
// A view addresses 2^32 blocks of 4 KiB, its metadata included.
inline constexpr uint64_t kMaxCoveredLength = uint64_t{1} << 43;

using Tag = std::array<std::byte, kTagSize>;

struct IndexHeader {
  bool encrypted = false;
  uint32_t chunk_size = 64 * 1024;    // power of two, 4 KiB to 1 MiB
  uint32_t block_size = 1024 * 1024;  // power of two, chunk_size to 64 MiB
  uint64_t covered_length = 0;        // multiple of 64 KiB
  uint64_t tar_length = 0;            // multiple of 512
  uint64_t toc_length = 0;            // the TOC begins at tar_length
  oci::Digest toc_digest;             // of the TOC's bytes as stored (ciphertext)
  std::array<std::byte, 32> salt{};   // zero where not encrypted
  oci::Digest block_root, tag_root;   // tag_root zero where not encrypted
  // To the key and nonce (crypt::CommitmentTo); zero where not encrypted.
  std::array<std::byte, 32> commitment{};

  std::array<std::byte, kHeaderSize> Encode() const;
  // Checks magic, version, every bound and that reserved bytes are zero.
  //   InvalidArgument  which field
  //   Unimplemented    another version
  static absl::StatusOr<IndexHeader> Decode(ByteSpan bytes);
  bool operator==(const IndexHeader&) const = default;
};

// One table of the index and where its pages lie: level 0 holds the entries,
// level n + 1 the SHA-256 of each page of level n, until one page is left,
// whose SHA-256 is the root.
struct Table {
  struct Level {
    uint64_t offset = 0;  // in the blob
    uint64_t length = 0;  // bytes
  };
  uint32_t entry_size = 0;
  uint64_t entries = 0;
  std::vector<Level> levels;
};
// Pages of a level, the last one short.
inline uint64_t PageCount(const Table::Level& level) { return CeilDiv(level.length, kPageSize); }

// Offsets of everything in the blob; a function of the header's numbers alone.
struct IndexLayout {
  Table blocks;
  Table tags;  // without levels where not encrypted
  uint64_t header_offset = 0;
  uint64_t blob_size = 0;
};
// `header` is one that Decode() takes; then nothing overflows.
IndexLayout LayoutOf(const IndexHeader& header);

}  // namespace kapsule::archive
