#include "core/daemon/signals.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>

namespace kapsule::daemon {

absl::StatusOr<SignalWaiter> SignalWaiter::Block(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  if (const int error = pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0)
    return ErrnoStatus(error, "block signals");
  UniqueFd fd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, "signalfd");
  return SignalWaiter(std::move(fd));
}

absl::StatusOr<int> SignalWaiter::Wait() {
  while (true) {
    ASSIGN_OR_RETURN(const std::optional<int> signal, WaitFor(-1));
    if (signal) return *signal;
  }
}

absl::StatusOr<std::optional<int>> SignalWaiter::WaitFor(int milliseconds) {
  pollfd waiting{fd_.get(), POLLIN, 0};
  if (poll(&waiting, 1, milliseconds) < 0 && errno != EINTR)
    return ErrnoStatus(errno, "wait for signals");
  signalfd_siginfo info;
  const ssize_t n = read(fd_.get(), &info, sizeof(info));
  if (n == sizeof(info)) return static_cast<int>(info.ssi_signo);
  if (n < 0 && errno != EAGAIN && errno != EINTR) return ErrnoStatus(errno, "read a signal");
  return std::nullopt;
}

}  // namespace kapsule::daemon
