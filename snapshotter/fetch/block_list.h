// The stored list of the blocks that a cached blob's file has.
#pragma once

#include "core/oci/digest.h"
#include "snapshotter/fetch/block_set.h"

namespace kapsule::fetch {

// More are refused: 16 TiB in blocks of 1 MiB.
inline constexpr uint64_t kMaxBlocks = uint64_t{1} << 24;

struct BlockList {
  oci::Digest root;  // of the index that the blocks were checked against
  uint64_t blob_size = 0;
  uint64_t inode = 0;  // of the blob's file: a list is of that one alone
  uint32_t block_size = 0;
  BlockSet blocks;

  Bytes Encode() const;  // ends with its own SHA-256
  // InvalidArgument: cut, damaged, of another version, or with too many blocks.
  static absl::StatusOr<BlockList> Decode(ByteSpan bytes);
};

inline constexpr size_t kMaxBlockListBytes = kMaxBlocks / 8 + 256;

}  // namespace kapsule::fetch
