#include "snapshotter/fuse/task_pool.h"

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
  if (tasks_.size() >= limit_) return false;
  tasks_.push_back(std::move(task));
  return true;
}

void TaskPool::Run() {
  for (;;) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mu_);
      const auto waiting = [this] {
        mu_.AssertReaderHeld();
        return !tasks_.empty();
      };
      mu_.Await(absl::Condition(&waiting));
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace kapsule::fuse
