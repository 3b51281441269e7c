// Finds out that a kapsule-fuse which runs is stuck, or that its holder is.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "snapshotter/control_channel.h"
#include "snapshotter/daemon_process_activity.h"
#include "snapshotter/fuse_connection.h"

namespace kapsule::snapshotter {

// A process that serves is stuck where, in kRounds rounds one after the other, it
// either answered nothing while its first thread did nothing, or took no request of
// the kernel's while all of its threads did nothing. To do nothing is to use no
// processor, want none and wait for no disk. So a process is never taken for stuck
// that is slow or short of processor time, whose disk is slow, whose reads wait for
// keys or for other machines, or that a debugger has. Asks nothing of the mount: no
// thread can be lost in it. Thread-safe. One thread of its own.
class FuseLifeWatch {
 public:
  static constexpr int kRounds = 5;

  // The process serves. `patience` is how long it takes to find out; infinite: only
  // the holder is watched. `on_change`, when a method below has another answer, is
  // called from that thread. `connection` is neither ended nor left before the end
  // of this.
  FuseLifeWatch(std::shared_ptr<ControlChannel> channel, pid_t pid,
                std::shared_ptr<const FuseConnection> connection, absl::Duration patience,
                std::function<void()> on_change);
  // Waits for an answer that is due; for none of the channel where that has ended.
  ~FuseLifeWatch();

  // What is wrong with it, "answers nothing"; empty: it is not stuck.
  std::string stuck() const ABSL_LOCKS_EXCLUDED(mu_);
  // When a round last ended well.
  absl::Time last_well() const ABSL_LOCKS_EXCLUDED(mu_);
  bool holder_answers() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Run();
  // What is wrong, in a round that ends at `end`.
  std::string Look(absl::Time end);
  bool Answers(absl::Time deadline) const;
  bool RequestsLie();
  bool Sleep(absl::Time until) ABSL_LOCKS_EXCLUDED(mu_);  // false: the destructor has called

  const std::shared_ptr<ControlChannel> channel_;
  const pid_t pid_;
  const std::shared_ptr<const FuseConnection> connection_;
  const bool judges_;
  const absl::Duration round_;
  const std::function<void()> on_change_;
  std::optional<ProcessActivity> before_;  // of the thread: at the end of the last round

  mutable absl::Mutex mu_;  // never held over a call of another process
  std::string stuck_ ABSL_GUARDED_BY(mu_);
  absl::Time last_well_ ABSL_GUARDED_BY(mu_);
  bool holder_answers_ ABSL_GUARDED_BY(mu_) = true;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;  // uses all of the above
};

}  // namespace kapsule::snapshotter
