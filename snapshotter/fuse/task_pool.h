// A few threads for work that may wait long.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <deque>
#include <functional>

#include "core/base/status.h"

namespace kapsule::fuse {

// Its threads live as long as the process, which ends by _exit(2): a task may
// hang on the disk or the keyprovider. Thread-safe.
class TaskPool {
 public:
  explicit TaskPool(size_t limit) : limit_(limit) {}
  // ResourceExhausted: no threads.
  absl::Status Start(unsigned threads);

  // False where `limit` tasks wait already. Tasks throw nothing.
  bool Add(std::function<void()> task);

 private:
  void Run();

  const size_t limit_;
  absl::Mutex mu_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::fuse
