#pragma once

#include <pthread.h>
#include <signal.h>

#include <ctime>

namespace kapsule::http {

// OpenSSL writes to a broken connection with write(2). Keeps the SIGPIPE of that
// from the process, for this thread and the lifetime of the object only.
class NoSigpipe {
 public:
  NoSigpipe() {
    sigset_t pending;
    sigemptyset(&set_);
    sigaddset(&set_, SIGPIPE);
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &set_, &old_);
  }
  ~NoSigpipe() {
    const timespec now = {};
    while (!was_pending_ && sigtimedwait(&set_, nullptr, &now) == SIGPIPE) {
    }
    pthread_sigmask(SIG_SETMASK, &old_, nullptr);
  }

 private:
  sigset_t set_, old_;
  bool was_pending_;
};

}  // namespace kapsule::http
