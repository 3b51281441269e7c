// Signals as events that one thread waits for, instead of handlers.
#pragma once

#include <initializer_list>
#include <optional>

#include "core/base/file.h"

namespace kapsule::daemon {

// Blocks signals for the calling thread and all that it starts afterwards, so
// make it before any other thread. The signals stay blocked when it is gone;
// a program that it starts must unblock them (posix_spawnattr_setsigmask).
// Thread-safe.
class SignalWaiter {
 public:
  static absl::StatusOr<SignalWaiter> Block(std::initializer_list<int> signals);

  // The next of the signals; waits for it.
  absl::StatusOr<int> Wait();
  // The same for at most `milliseconds`; nullopt where none came.
  absl::StatusOr<std::optional<int>> WaitFor(int milliseconds);

  // Readable while a signal is pending (signalfd), for a poll loop.
  int fd() const { return fd_.get(); }

 private:
  explicit SignalWaiter(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace kapsule::daemon
