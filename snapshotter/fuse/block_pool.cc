#include "snapshotter/fuse/block_pool.h"

#include <algorithm>

namespace kapsule::fuse {
namespace {

// A block that was read ahead and not yet to its end is kept at least so long:
// dropping it would read it twice.
constexpr auto kKeep = std::chrono::milliseconds(500);

}  // namespace

// All but `block` is guarded by the pool's lock.
struct BlockPool::Slot {
  Block block;
  Id id;
  bool found = false;  // by its id
  bool loading = false;
  unsigned pins = 0;
  size_t read = 0;   // bytes of it, by everybody together
  uint64_t use = 0;  // when, in uses of the pool; 0: never
  Clock::time_point reserved;
  std::vector<WaiterPtr> waiters;

  bool spent() const { return !found || read >= block.length; }
};

BlockPool::Pin::~Pin() {
  if (slot_ != nullptr) pool_->Unpin(*slot_, read_);
}

BlockPool::Block& BlockPool::Pin::operator*() const { return slot_->block; }

absl::StatusOr<std::unique_ptr<BlockPool>> BlockPool::Make(size_t limit) {
  const size_t slots = limit / kBlockSize;
  ASSIGN_OR_RETURN(HugeMemory memory, HugeMemory::Make(slots * kBlockSize));
  return std::unique_ptr<BlockPool>(new BlockPool(std::move(memory), slots));
}

BlockPool::BlockPool(HugeMemory memory, size_t slots)
    : memory_(std::move(memory)), slot_count_(slots), slots_(std::make_unique<Slot[]>(slots)) {
  for (size_t i = 0; i < slots; ++i) {
    slots_[i].block.memory = memory_.bytes().subspan(i * kBlockSize, kBlockSize);
    slots_[i].block.tags.reserve(blob::VerifiedChunks::kMax);  // loading allocates nothing
  }
}

BlockPool::~BlockPool() = default;

BlockPool::Reserved BlockPool::Reserve(const Id& id, size_t length, Clock::time_point now) {
  const absl::MutexLock lock(&mu_);
  if (const Slot* there = SlotOf(id))
    return {there->loading ? Presence::kLoading : Presence::kReady, {}};
  Slot* const slot = FreeSlot(now);
  if (slot == nullptr) return {};
  Withdraw(*slot);
  slot->block.length = length;
  slot->id = id;
  slot->found = slot->loading = true;
  slot->read = 0;
  slot->pins = 1;
  slot->use = ++uses_;
  slot->reserved = now;
  found_[id] = slot;
  return {Presence::kAbsent, Pin(this, slot)};
}

// Spent ones first, the last used of them before all: its memory is in the
// processor's cache, and slots that were never needed stay untouched.
BlockPool::Slot* BlockPool::FreeSlot(Clock::time_point now) {
  Slot *spent = nullptr, *oldest = nullptr;
  for (Slot& slot : std::span(slots_.get(), slot_count_)) {
    if (slot.pins != 0) continue;
    if (slot.spent()) {
      if (spent == nullptr || slot.use > spent->use) spent = &slot;
    } else if (now - slot.reserved >= kKeep) {
      if (oldest == nullptr || slot.use < oldest->use) oldest = &slot;
    }
  }
  return spent != nullptr ? spent : oldest;
}

std::vector<BlockPool::WaiterPtr> BlockPool::Complete(const Pin& pin, bool good) {
  std::vector<WaiterPtr> waiters;
  const absl::MutexLock lock(&mu_);
  Slot& slot = *pin.slot_;
  slot.loading = false;
  if (!good) Withdraw(slot);
  waiters.swap(slot.waiters);
  std::erase_if(waiters, [this](const WaiterPtr& waiter) {
    mu_.AssertHeld();
    return --waiter->missing_ != 0;
  });
  return waiters;
}

BlockPool::Presence BlockPool::Look(const Id& id) const {
  const absl::MutexLock lock(&mu_);
  const Slot* const slot = SlotOf(id);
  if (slot == nullptr) return Presence::kAbsent;
  return slot->loading ? Presence::kLoading : Presence::kReady;
}

BlockPool::Pin BlockPool::Find(const Id& id) {
  const absl::MutexLock lock(&mu_);
  Slot* const slot = SlotOf(id);
  if (slot == nullptr || slot->loading) return {};
  slot->use = ++uses_;
  ++slot->pins;
  return Pin(this, slot);
}

bool BlockPool::Wait(uint64_t layer, uint64_t first, uint64_t last, const WaiterPtr& waiter) {
  const absl::MutexLock lock(&mu_);
  for (uint64_t number = first; number <= last; ++number) {
    Slot* const slot = SlotOf({layer, number});
    if (slot == nullptr) continue;
    ++slot->pins;
    waiter->pins.push_back(Pin(this, slot));
    if (!slot->loading) continue;
    ++waiter->missing_;
    slot->waiters.push_back(waiter);
  }
  return waiter->missing_ != 0;
}

void BlockPool::Drop(const Pin& pin) {
  const absl::MutexLock lock(&mu_);
  Withdraw(*pin.slot_);
}

void BlockPool::Unpin(Slot& slot, size_t read) {
  const absl::MutexLock lock(&mu_);
  slot.read += read;
  --slot.pins;
}

BlockPool::Slot* BlockPool::SlotOf(const Id& id) const {
  const auto it = found_.find(id);
  return it == found_.end() ? nullptr : it->second;
}

void BlockPool::Withdraw(Slot& slot) {
  if (slot.found) found_.erase(slot.id);
  slot.found = false;
}

}  // namespace kapsule::fuse
