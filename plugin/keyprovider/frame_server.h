// Answers the frames of core/keyprovider/wire.h.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <deque>
#include <set>
#include <thread>
#include <vector>

#include "plugin/keyprovider/provider.h"

namespace kapsule::keyprovider {

// One request for each connection, which has 10 s to send it. A pool of at most
// 64 threads, one for each connection that is open, so that a peer that stalls
// holds up nobody; connections beyond that are closed unanswered. Peers that
// are not allowed share 8 of the places. Thread-safe.
class FrameServer {
 public:
  // `provider` outlives this.
  explicit FrameServer(const Provider& provider) : provider_(provider) {}
  // Ends what is open.
  ~FrameServer() ABSL_LOCKS_EXCLUDED(mu_);

  void Serve(UniqueFd connection, const PeerCredentials& peer) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Job {
    UniqueFd connection;
    PeerCredentials peer;
    bool allowed;
  };

  void Work() ABSL_LOCKS_EXCLUDED(mu_);
  void Answer(const Job& job) const;
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !queue_.empty(); }

  const Provider& provider_;

  absl::Mutex mu_;  // never held while a connection is read or written
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<Job> queue_ ABSL_GUARDED_BY(mu_);
  std::set<int> active_ ABSL_GUARDED_BY(mu_);  // connections that a thread holds
  size_t refused_ ABSL_GUARDED_BY(mu_) = 0;    // of peers that are not allowed
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::keyprovider
