// Which blocks of a blob are there: one bit each.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/bytes.h"

namespace kapsule::fetch {

// Successive blocks.
struct Range {
  uint64_t first = 0, count = 0;
  uint64_t end() const { return first + count; }
  bool Holds(uint64_t block) const { return block >= first && block - first < count; }
  bool operator==(const Range&) const = default;
};

// Blocks are below size(). Not thread-safe.
class BlockSet {
 public:
  explicit BlockSet(uint64_t size = 0) : size_(size), words_(CeilDiv(size, 64)) {}
  // Bits as Bytes() gives them. InvalidArgument: another length than `size` has,
  // or a bit beyond it.
  static absl::StatusOr<BlockSet> FromBytes(ByteSpan bytes, uint64_t size);
  ByteSpan bytes() const { return std::as_bytes(std::span(words_)); }

  uint64_t size() const { return size_; }
  uint64_t count() const { return count_; }
  bool Has(uint64_t block) const { return (words_[block / 64] >> block % 64 & 1) != 0; }
  // True where it was not so before.
  bool Add(uint64_t block);
  bool Remove(uint64_t block);
  // The first block from `from` on that is there (or is not); size() where none is.
  uint64_t Next(bool there, uint64_t from) const;

 private:
  uint64_t size_, count_ = 0;
  std::vector<uint64_t> words_;
};

}  // namespace kapsule::fetch
