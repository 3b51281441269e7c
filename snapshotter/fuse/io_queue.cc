#include "snapshotter/fuse/io_queue.h"

#include <utility>

namespace kapsule::fuse {
namespace {

// So many reads from memory may go before one that has waited for the disk.
constexpr unsigned kReadyInARow = 4;

}  // namespace

void IoQueue::AddLoad(BlockLoad load) {
  const absl::MutexLock lock(&mu_);
  loads_.push_back(std::move(load));
  // Where as many as may run do run, the next one that ends takes it.
  if (HasLoad()) WakeOne();
}

void IoQueue::AddReady(DeferredPtr read) {
  const absl::MutexLock lock(&mu_);
  ready_.push_back(std::move(read));
  WakeOne();
}

void IoQueue::AddDirect(DeferredPtr read) {
  const absl::MutexLock lock(&mu_);
  direct_.push_back(std::move(read));
  WakeOne();
}

std::optional<IoQueue::Work> IoQueue::Next() {
  const absl::MutexLock lock(&mu_);
  for (;;) {
    if (stopped_) return std::nullopt;
    Work work;
    if (HasLoad()) {
      work.load = std::move(loads_.front());
      loads_.pop_front();
      ++loading_;
      return work;
    }
    work.read = TakeRead();
    if (work.read != nullptr) return work;
    Sleep();
  }
}

void IoQueue::Sleep() {
  Sleeper me;
  me.below = std::exchange(sleepers_, &me);
  while (!me.woken) me.wake.Wait(&mu_);
}

void IoQueue::WakeOne() {
  if (sleepers_ == nullptr) return;
  Sleeper& last = *sleepers_;
  sleepers_ = last.below;
  last.woken = true;
  last.wake.Signal();
}

bool IoQueue::HasLoad() const { return !loads_.empty() && loading_ < loads_at_once_; }

DeferredPtr IoQueue::TakeRead() {
  const bool from_direct = !direct_.empty() && (ready_.empty() || ready_in_a_row_ >= kReadyInARow);
  std::deque<DeferredPtr>& queue = from_direct ? direct_ : ready_;
  if (queue.empty()) return nullptr;
  ready_in_a_row_ = from_direct ? 0 : ready_in_a_row_ + 1;
  DeferredPtr read = std::move(queue.front());
  queue.pop_front();
  return read;
}

void IoQueue::LoadDone() {
  const absl::MutexLock lock(&mu_);
  --loading_;
}

std::deque<BlockLoad> IoQueue::Stop() {
  const absl::MutexLock lock(&mu_);
  stopped_ = true;
  while (sleepers_ != nullptr) WakeOne();
  return std::exchange(loads_, {});
}

}  // namespace kapsule::fuse
