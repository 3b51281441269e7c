// A few threads for work that may wait long.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <functional>
#include <map>

#include "core/base/status.h"

namespace kapsule::fuse {

// Its threads live as long as the process, which ends by _exit(2): a task may
// hang on the disk or the keyprovider. Thread-safe. Tasks throw nothing.
class TaskPool {
 public:
  explicit TaskPool(size_t limit) : limit_(limit) {}
  // ResourceExhausted: no threads.
  absl::Status Start(unsigned threads);

  // False where `limit` tasks wait already.
  bool Add(std::function<void()> task) ABSL_LOCKS_EXCLUDED(mu_);
  // At `time`, behind what was added before; not counted. The caller bounds them.
  void AddAt(absl::Time time, std::function<void()> task) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Tasks = std::multimap<absl::Time, std::function<void()>>;
  void Run();
  std::function<void()> Next() ABSL_LOCKS_EXCLUDED(mu_);

  const size_t limit_;
  absl::Mutex mu_;
  absl::CondVar changed_;
  Tasks tasks_ ABSL_GUARDED_BY(mu_);  // by time; those of Add() stand at InfinitePast
  size_t counted_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kapsule::fuse
