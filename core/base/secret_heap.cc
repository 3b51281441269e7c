#include "core/base/secret_heap.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

namespace kapsule {

SecretHeap::SecretHeap(MutableByteSpan memory) : memory_(memory), pages_(memory.size() / kPage) {
  with_room_.fill(kNone);
}

size_t SecretHeap::used() const {
  absl::MutexLock lock(&mu_);
  return used_;
}

void* SecretHeap::Allocate(size_t size) {
  if (size == 0 || size > memory_.size()) return nullptr;
  absl::MutexLock lock(&mu_);
  if (size > kSizes.back()) return AllocateRun(CeilDiv(size, kPage));
  const auto fitting = std::lower_bound(kSizes.begin(), kSizes.end(), size);
  return AllocateSmall(static_cast<uint8_t>(fitting - kSizes.begin()));
}

void* SecretHeap::Resize(void* piece, size_t size) {
  if (piece == nullptr) return Allocate(size);
  if (size == 0) {
    Free(piece);
    return nullptr;
  }
  size_t had;
  {
    absl::MutexLock lock(&mu_);
    had = Find(piece).bytes;
  }
  if (size <= had && size > had / 2) return piece;
  void* const other = Allocate(size);
  if (other == nullptr) return size <= had ? piece : nullptr;
  std::memcpy(other, piece, std::min(size, had));
  Free(piece);
  return other;
}

void SecretHeap::Free(void* piece) {
  if (piece == nullptr) return;
  absl::MutexLock lock(&mu_);
  const Place place = Find(piece);
  OPENSSL_cleanse(piece, place.bytes);
  used_ -= place.bytes;
  if (pages_[place.page].kind == kRun) {
    ReleasePages(place.page, pages_[place.page].run);
  } else {
    FreeSmall(place);
  }
}

void* SecretHeap::AllocateSmall(uint8_t kind) {
  const size_t size = kSizes[kind], slots = kPage / size;
  uint32_t index = with_room_[kind];
  if (index == kNone) {
    index = FindFree(1);
    if (index == kNone) return nullptr;
    pages_[index].kind = kind;
    Link(index);
  }
  Page& page = pages_[index];
  uint32_t slot = 0;
  for (uint64_t& word : page.taken) {
    const int bit = std::countr_one(word);
    slot += static_cast<uint32_t>(bit);
    if (bit == 64) continue;
    word |= uint64_t{1} << bit;
    break;
  }
  if (++page.pieces == slots) Unlink(index);
  used_ += size;
  return At(index) + slot * size;
}

void* SecretHeap::AllocateRun(size_t pages) {
  const uint32_t first = FindFree(pages);
  if (first == kNone) return nullptr;
  for (size_t i = 0; i < pages; ++i) pages_[first + i].kind = kRun;
  pages_[first].run = static_cast<uint32_t>(pages);
  used_ += pages * kPage;
  return At(first);
}

uint32_t SecretHeap::FindFree(size_t pages) {
  while (first_free_ < pages_.size() && pages_[first_free_].kind != kFreePage) ++first_free_;
  size_t found = 0;
  for (size_t i = first_free_; i < pages_.size(); ++i) {
    found = pages_[i].kind == kFreePage ? found + 1 : 0;
    if (found == pages) return static_cast<uint32_t>(i + 1 - pages);
  }
  return kNone;
}

// A pointer that is none of ours, or freed twice, means that memory is corrupt:
// going on would hand one secret to two owners.
SecretHeap::Place SecretHeap::Find(const void* piece) const {
  const auto* const at = static_cast<const std::byte*>(piece);
  if (at < memory_.data() || at >= memory_.data() + memory_.size()) std::abort();
  const size_t offset = static_cast<size_t>(at - memory_.data());
  const auto index = static_cast<uint32_t>(offset / kPage);
  const Page& page = pages_[index];
  if (page.kind == kRun && page.run != 0 && offset % kPage == 0)
    return {index, 0, size_t{page.run} * kPage};
  if (page.kind >= kSizes.size()) std::abort();
  const size_t size = kSizes[page.kind];
  const auto slot = static_cast<uint32_t>(offset % kPage / size);
  if (offset % kPage % size != 0 || (page.taken[slot / 64] >> slot % 64 & 1) == 0) std::abort();
  return {index, slot, size};
}

void SecretHeap::FreeSmall(const Place& place) {
  Page& page = pages_[place.page];
  page.taken[place.slot / 64] &= ~(uint64_t{1} << place.slot % 64);
  const bool was_full = page.pieces == kPage / kSizes[page.kind];
  if (was_full) Link(place.page);
  if (--page.pieces > 0) return;
  Unlink(place.page);
  ReleasePages(place.page, 1);
}

void SecretHeap::ReleasePages(uint32_t first, size_t n) {
  for (size_t i = 0; i < n; ++i) pages_[first + i] = Page{};
  first_free_ = std::min(first_free_, first);
}

void SecretHeap::Link(uint32_t index) {
  Page& page = pages_[index];
  uint32_t& head = with_room_[page.kind];
  page.next = head;
  page.previous = kNone;
  if (head != kNone) pages_[head].previous = index;
  head = index;
}

void SecretHeap::Unlink(uint32_t index) {
  Page& page = pages_[index];
  (page.previous == kNone ? with_room_[page.kind] : pages_[page.previous].next) = page.next;
  if (page.next != kNone) pages_[page.next].previous = page.previous;
  page.next = page.previous = kNone;
}

}  // namespace kapsule
