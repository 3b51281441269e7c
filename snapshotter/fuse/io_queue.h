// What the I/O threads do next.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "core/blob/layer_reader.h"
#include "snapshotter/fuse/block_pool.h"
#include "snapshotter/fuse/read_scratch.h"

namespace kapsule::fuse {

using LayerPtr = std::shared_ptr<const blob::LayerReader>;

// A block that nobody loads yet.
struct BlockLoad {
  LayerPtr layer;
  uint64_t number = 0;
  BlockPool::Pin pin;
};

// A read that an I/O thread finishes; `thread` is its number.
struct DeferredRead : BlockPool::Waiter {
  std::function<void(ReadScratch& scratch, unsigned thread)> finish;
};
using DeferredPtr = std::shared_ptr<DeferredRead>;

// Loads come first, but only a few run at once, so that there are always threads
// for reads: those whose blocks are there, and every few times one that goes to
// the disk itself. Loads are no more than there are slots, reads no more than
// those who defer them have. Of the threads that wait the last one goes on first: what it
// works in is in the processors' caches, and that of threads which are never needed
// stays untouched. Thread-safe.
class IoQueue {
 public:
  // Exactly one of the two.
  struct Work {
    std::optional<BlockLoad> load;
    DeferredPtr read;
  };

  explicit IoQueue(unsigned loads_at_once) : loads_at_once_(loads_at_once) {}

  void AddLoad(BlockLoad load) ABSL_LOCKS_EXCLUDED(mu_);
  void AddReady(DeferredPtr read) ABSL_LOCKS_EXCLUDED(mu_);   // its bytes are in memory
  void AddDirect(DeferredPtr read) ABSL_LOCKS_EXCLUDED(mu_);  // needs the disk
  // Waits for work; nullopt after Stop().
  std::optional<Work> Next() ABSL_LOCKS_EXCLUDED(mu_);
  void LoadDone() ABSL_LOCKS_EXCLUDED(mu_);  // one that Next() gave
  // Gives back the loads that nobody took.
  std::deque<BlockLoad> Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // A thread in Next(), on its stack.
  struct Sleeper {
    Sleeper* below = nullptr;
    bool woken = false;
    absl::CondVar wake;
  };
  void Sleep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WakeOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasLoad() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  DeferredPtr TakeRead() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const unsigned loads_at_once_;
  absl::Mutex mu_;
  Sleeper* sleepers_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::deque<BlockLoad> loads_ ABSL_GUARDED_BY(mu_);
  std::deque<DeferredPtr> ready_ ABSL_GUARDED_BY(mu_), direct_ ABSL_GUARDED_BY(mu_);
  unsigned loading_ ABSL_GUARDED_BY(mu_) = 0;
  unsigned ready_in_a_row_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace kapsule::fuse
