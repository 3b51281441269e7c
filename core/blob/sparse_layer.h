// Layers for tests that are far larger than the disk: holes but for the chunks
// that are read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "core/blob/test_layer.h"

namespace kapsule::blob {

// Files of a given size, in this order in the tar; parents come first.
struct SparseFile {
  std::string path;
  uint64_t size = 0;
  // Offsets in the file whose chunks are there. A read of any other finds a tag
  // of zeros and fails.
  std::vector<uint64_t> filled = {};
};

// What the chunk `index` of every sparse layer decrypts to, where it is there
// and before the tar's end.
std::string SparseChunk(uint64_t index, uint32_t chunk_size);

struct SparseLayer {
  TestLayer layer;  // without bytes and plain
  uint64_t size = 0;
};

// Writes an encrypted layer to the new file `path`. Its tar has no headers, which
// a view does not need; its block digests are zeros. Dies where a piece fails.
SparseLayer WriteSparseLayer(const std::filesystem::path& path,
                             const std::vector<SparseFile>& files, uint32_t chunk_size = 64 * 1024);

}  // namespace kapsule::blob
