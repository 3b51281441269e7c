#include "snapshotter/fuse/task_pool.h"

#include <absl/time/clock.h>

#include <system_error>
#include <thread>

namespace kapsule::fuse {

absl::Status TaskPool::Start(unsigned threads) {
  try {
    for (unsigned i = 0; i < threads; ++i) std::thread([this] { Run(); }).detach();
  } catch (const std::system_error& e) {
    return ResourceExhausted("start a thread: {}", e.what());
  }
  return absl::OkStatus();
}

bool TaskPool::Add(std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  if (counted_ >= limit_) return false;
  ++counted_;
  tasks_.emplace(absl::InfinitePast(), std::move(task));
  changed_.Signal();
  return true;
}

void TaskPool::AddAt(absl::Time time, std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  tasks_.emplace(time, std::move(task));
  changed_.Signal();
}

std::function<void()> TaskPool::Next() {
  absl::MutexLock lock(&mu_);
  for (;;) {
    const auto first = tasks_.begin();
    if (first == tasks_.end()) {
      changed_.Wait(&mu_);
    } else if (first->first > absl::Now()) {
      changed_.WaitWithDeadline(&mu_, first->first);
    } else {
      if (first->first == absl::InfinitePast()) --counted_;
      std::function<void()> task = std::move(first->second);
      tasks_.erase(first);
      return task;
    }
  }
}

void TaskPool::Run() {
  for (;;) Next()();
}

}  // namespace kapsule::fuse
