// Blocks of ciphertext that streams read ahead.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <chrono>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/archive/index.h"
#include "core/blob/chunk_opener.h"
#include "snapshotter/fuse/huge_memory.h"

namespace kapsule::fuse {

// A fixed number of slots in one mapping. A block is reserved, loaded by who
// reserved it, and then found by others until its slot is needed again.
// Thread-safe; the lock is never held over I/O.
class BlockPool {
 public:
  static constexpr size_t kBlockSize = kHugePage;
  using Clock = std::chrono::steady_clock;

  struct Id {
    uint64_t layer = 0;
    uint64_t number = 0;  // the block begins at byte number * kBlockSize
    bool operator==(const Id&) const = default;
  };
  // What lies in a slot: written by the loader alone, then constant but for marks.
  struct Block {
    MutableByteSpan memory;          // kBlockSize bytes
    size_t length = 0;               // of the block
    std::vector<archive::Tag> tags;  // of its chunks; none where not encrypted
    blob::VerifiedChunks verified;
    ByteSpan bytes() const { return memory.first(length); }
  };

 private:
  struct Slot;

 public:
  // Keeps a block where it is; empty where there is none.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept
        : pool_(std::exchange(other.pool_, nullptr)),
          slot_(std::exchange(other.slot_, nullptr)),
          read_(std::exchange(other.read_, 0)) {}
    Pin& operator=(Pin&& other) noexcept {
      std::swap(pool_, other.pool_);
      std::swap(slot_, other.slot_);
      std::swap(read_, other.read_);
      return *this;
    }
    ~Pin();
    explicit operator bool() const { return slot_ != nullptr; }
    Block& operator*() const;
    Block* operator->() const { return &**this; }
    // So much of the block has been read: one that was read to its end goes first.
    void CountRead(size_t bytes) { read_ += bytes; }

   private:
    friend class BlockPool;
    Pin(BlockPool* pool, Slot* slot) : pool_(pool), slot_(slot) {}
    BlockPool* pool_ = nullptr;
    Slot* slot_ = nullptr;
    size_t read_ = 0;
  };

  // A read that waits for blocks, which it pins.
  struct Waiter {
    virtual ~Waiter() = default;
    std::vector<Pin> pins;

   private:
    friend class BlockPool;
    size_t missing_ = 0;  // blocks; guarded by the pool's lock
  };
  using WaiterPtr = std::shared_ptr<Waiter>;

  // Uses up to `limit` bytes, rounded down to whole slots; 0: nothing is read ahead.
  static absl::StatusOr<std::unique_ptr<BlockPool>> Make(size_t limit);
  ~BlockPool();
  size_t slots() const { return slot_count_; }

  // A slot for a block to be loaded, and then passed to Complete(). Empty where the
  // block is there or on its way, or no slot is free: one whose block was read to
  // the end, or was not used for a while.
  enum class Presence { kAbsent, kLoading, kReady };
  struct Reserved {
    Presence found = Presence::kAbsent;
    Pin pin;  // only where `found` is kAbsent; empty: no slot
  };
  Reserved Reserve(const Id& id, size_t length, Clock::time_point now) ABSL_LOCKS_EXCLUDED(mu_);
  // The block of `pin` is loaded, or has failed and is gone. Those that waited for it
  // last of all come back.
  std::vector<WaiterPtr> Complete(const Pin& pin, bool good) ABSL_LOCKS_EXCLUDED(mu_);

  Presence Look(const Id& id) const ABSL_LOCKS_EXCLUDED(mu_);
  // Pins a block that is ready.
  Pin Find(const Id& id) ABSL_LOCKS_EXCLUDED(mu_);
  // Pins those of the blocks first, …, last that are there or on their way. True
  // where `waiter` waits now; false where none is on its way.
  bool Wait(uint64_t layer, uint64_t first, uint64_t last, const WaiterPtr& waiter)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Nobody finds the block any more: its bytes are bad.
  void Drop(const Pin& pin) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct IdHash {
    size_t operator()(const Id& id) const {
      return (id.layer * 0x9E3779B97F4A7C15u) ^ (id.number * 0xC2B2AE3D27D4EB4Fu);
    }
  };
  BlockPool(HugeMemory memory, size_t slots);
  void Unpin(Slot& slot, size_t read) ABSL_LOCKS_EXCLUDED(mu_);
  Slot* FreeSlot(Clock::time_point now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Slot* SlotOf(const Id& id) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  void Withdraw(Slot& slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const HugeMemory memory_;
  const size_t slot_count_;
  mutable absl::Mutex mu_;
  const std::unique_ptr<Slot[]> slots_;
  std::unordered_map<Id, Slot*, IdHash> found_ ABSL_GUARDED_BY(mu_);
  uint64_t uses_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kapsule::fuse
