#include "snapshotter/fetch/block_set.h"

#include <algorithm>
#include <bit>

namespace kapsule::fetch {

absl::StatusOr<BlockSet> BlockSet::FromBytes(ByteSpan bytes, uint64_t size) {
  BlockSet set(size);
  if (bytes.size() != set.bytes().size())
    return InvalidArgument("{} bytes for the bits of {} blocks", bytes.size(), size);
  std::memcpy(set.words_.data(), bytes.data(), bytes.size());
  if (size % 64 != 0 && set.words_.back() >> size % 64 != 0)
    return InvalidArgument("bits beyond the {} blocks", size);
  for (const uint64_t word : set.words_) set.count_ += static_cast<uint64_t>(std::popcount(word));
  return set;
}

bool BlockSet::Add(uint64_t block) {
  if (Has(block)) return false;
  words_[block / 64] |= uint64_t{1} << block % 64;
  ++count_;
  return true;
}

bool BlockSet::Remove(uint64_t block) {
  if (!Has(block)) return false;
  words_[block / 64] &= ~(uint64_t{1} << block % 64);
  --count_;
  return true;
}

uint64_t BlockSet::Next(bool there, uint64_t from) const {
  if (from >= size_) return size_;
  uint64_t word = from / 64;
  uint64_t bits = (there ? words_[word] : ~words_[word]) & ~uint64_t{0} << from % 64;
  while (bits == 0) {
    if (++word == words_.size()) return size_;
    bits = there ? words_[word] : ~words_[word];
  }
  return std::min(size_, word * 64 + static_cast<uint64_t>(std::countr_zero(bits)));
}

}  // namespace kapsule::fetch
