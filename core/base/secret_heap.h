// An allocator for memory that holds secrets.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/bytes.h"

namespace kapsule {

// Hands out pieces of one fixed region. A small piece lies in a page of pieces
// of one size, a piece of more than half a page has pages of its own; rounding
// loses less than half. Every piece is given out zeroed and overwritten as soon
// as it is freed. What describes the pieces lies outside the region.
//
// Thread-safe; makes no system call but those of a contended lock.
class SecretHeap {
 public:
  static constexpr size_t kPage = 4096;

  // `memory` is zero, begins at a page, is a number of whole pages and outlives
  // this; pages that were never given out are never touched.
  explicit SecretHeap(MutableByteSpan memory);
  SecretHeap(const SecretHeap&) = delete;
  SecretHeap& operator=(const SecretHeap&) = delete;

  // Zero bytes, aligned to 16, from 256 bytes on to 64. Null where there is no
  // room, and for size 0.
  void* Allocate(size_t size) ABSL_LOCKS_EXCLUDED(mu_);

  // As realloc(3): null leaves `piece` as it was, but size 0 frees it.
  void* Resize(void* piece, size_t size) ABSL_LOCKS_EXCLUDED(mu_);

  // `piece` is one of this heap, or null; anything else ends the process.
  void Free(void* piece) ABSL_LOCKS_EXCLUDED(mu_);

  size_t size() const { return memory_.size(); }
  size_t used() const ABSL_LOCKS_EXCLUDED(mu_);  // bytes of pieces, after rounding

 private:
  static constexpr size_t kUnit = 16;  // smallest piece
  static constexpr uint32_t kNone = UINT32_MAX;
  // Multiples of 64 from 256 on, so that a page's pieces keep that alignment.
  static constexpr std::array<uint16_t, 20> kSizes = {16,  32,  48,  64,  80,   96,  128,
                                                      160, 192, 224, 256, 320,  384, 448,
                                                      512, 640, 768, 960, 1344, 2048};
  enum : uint8_t { kFreePage = 0xff, kRun = 0xfe };

  struct Page {
    std::array<uint64_t, kPage / kUnit / 64> taken{};  // a bit for each piece
    uint32_t next = kNone, previous = kNone;           // pages of this size with room
    uint32_t run = 0;                                  // pages of the piece that begins here
    uint16_t pieces = 0;                               // that are taken
    uint8_t kind = kFreePage;                          // or kRun, or an index of kSizes
  };
  struct Place {  // of a piece
    uint32_t page;
    uint32_t slot;
    size_t bytes;
  };

  void* AllocateSmall(uint8_t kind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void* AllocateRun(size_t pages) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint32_t FindFree(size_t pages) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Place Find(const void* piece) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FreeSmall(const Place& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReleasePages(uint32_t first, size_t n) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Link(uint32_t page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Unlink(uint32_t page) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::byte* At(uint32_t page) const { return memory_.data() + size_t{page} * kPage; }

  const MutableByteSpan memory_;
  mutable absl::Mutex mu_;
  std::vector<Page> pages_ ABSL_GUARDED_BY(mu_);
  std::array<uint32_t, kSizes.size()> with_room_ ABSL_GUARDED_BY(mu_);  // heads of the lists
  uint32_t first_free_ ABSL_GUARDED_BY(mu_) = 0;                        // no page before it is free
  size_t used_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kapsule
