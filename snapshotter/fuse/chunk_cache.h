// Verified chunks of ciphertext, for reads of less than a chunk.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <array>
#include <list>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "snapshotter/fuse/huge_memory.h"

namespace kapsule::fuse {

// A bounded LRU. Its memory is cut into regions of 1 MiB, each into frames of one
// chunk size; a size that is read more takes regions from the others. A read
// fills a frame itself and then shares it, so nothing is copied. Thread-safe; the
// lock is never held over I/O.
class ChunkCache {
 public:
  static constexpr size_t kRegionSize = 1 << 20;
  static constexpr size_t kMinChunk = 4 << 10, kMaxChunk = kRegionSize;

 private:
  struct Frame;

 public:
  // Keeps a frame's bytes as they are; empty where there is none. A frame that
  // was not shared by Keep() is free again at its end.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept
        : cache_(std::exchange(other.cache_, nullptr)),
          frame_(std::exchange(other.frame_, nullptr)) {}
    Pin& operator=(Pin&& other) noexcept {
      std::swap(cache_, other.cache_);
      std::swap(frame_, other.frame_);
      return *this;
    }
    ~Pin();
    explicit operator bool() const { return frame_ != nullptr; }
    // All of the frame; a layer's last chunk may be shorter. Only who allocated it
    // writes, before Keep().
    MutableByteSpan bytes() const;

   private:
    friend class ChunkCache;
    Pin(ChunkCache* cache, Frame* frame) : cache_(cache), frame_(frame) {}
    ChunkCache* cache_ = nullptr;
    Frame* frame_ = nullptr;
  };

  // Uses up to `limit` bytes, rounded down to whole regions; 0 is no cache.
  static absl::StatusOr<std::unique_ptr<ChunkCache>> Make(size_t limit);
  ~ChunkCache();

  Pin Find(uint64_t layer, uint64_t chunk) ABSL_LOCKS_EXCLUDED(mu_);
  // A frame of `chunk_size` bytes, a power of two from kMinChunk to kMaxChunk; empty
  // where all are in use.
  Pin Allocate(size_t chunk_size) ABSL_LOCKS_EXCLUDED(mu_);
  // Lets others find it, unless they have got the chunk already.
  void Keep(const Pin& pin, uint64_t layer, uint64_t chunk) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Key {
    uint64_t layer = 0, chunk = 0;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const {
      return (key.layer * 0x9E3779B97F4A7C15u) ^ (key.chunk * 0xC2B2AE3D27D4EB4Fu);
    }
  };
  struct Region;
  // Frames of one size; most recently used first, those that may be reused last.
  struct Class {
    std::list<Frame*> frames;
    size_t regions = 0;
  };
  static constexpr size_t kClasses = 9;

  explicit ChunkCache(HugeMemory memory, size_t regions);
  void Unpin(Frame& frame) ABSL_LOCKS_EXCLUDED(mu_);
  Frame* Reusable(Class& of) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Region* RegionFor(size_t index, bool urgent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Assign(Region& region, size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Withdraw(Frame& frame) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const HugeMemory memory_;
  absl::Mutex mu_;
  std::vector<Region> regions_ ABSL_GUARDED_BY(mu_);
  std::array<Class, kClasses> classes_ ABSL_GUARDED_BY(mu_);
  std::unordered_map<Key, Frame*, KeyHash> kept_ ABSL_GUARDED_BY(mu_);
  uint64_t uses_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kapsule::fuse
