// Requests to one kapsule-fuse or kapsule-fetch process and the answers to them.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <functional>
#include <map>
#include <thread>
#include <vector>

#include "core/base/file.h"
#include "core/control/control_wire.h"
#include "core/control/fetch_control.h"

namespace kapsule::snapshotter {

inline constexpr size_t kMaxPeerText = 1024;  // of an error

struct DataPlaneProtocol {
  static constexpr const char* kPeer = "kapsule-fuse";
  using Request = v1::DataPlaneRequest;
  using Reply = v1::DataPlaneReply;
};
struct FetchProtocol {
  static constexpr const char* kPeer = "kapsule-fetch";
  using Request = v1::FetchRequest;
  using Reply = control::ReceivedFetchReply;
};

// Thread-safe. One thread of its own reads the answers.
template <typename Protocol>
class CallChannel {
 public:
  using Request = typename Protocol::Request;
  using Reply = typename Protocol::Reply;

  // `socket` may have been another process's: what answers that one's requests is
  // ignored. `on_end` is called once from that thread, when the peer is gone, breaks
  // the protocol, or Close() or Leave() was called.
  CallChannel(UniqueFd socket, std::function<void()> on_end);
  ~CallChannel() { Close(); }

  // Sends a request, whose id is chosen here, and waits for its answer; errors
  // of the peer come back with their code, and their text printable and cut to
  // kMaxPeerText.
  //   Unavailable       the channel has ended, as ended() says by then; or as the peer says
  //   DeadlineExceeded  no answer in time
  absl::StatusOr<Reply> Call(Request request, const std::vector<int>& fds, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Ends the connection: the peer sees it closed, and every call fails. Does
  // not wait for on_end.
  void Shutdown();
  // Shutdown(), and on_end has returned. From one thread only.
  void Close();
  // As Close(), but the peer sees nothing while there is a duplicate of the
  // socket somewhere.
  void Leave();

  bool ended() const ABSL_LOCKS_EXCLUDED(mu_);
  int socket() const { return socket_.get(); }

 private:
  struct Pending {
    bool done = false;
    absl::StatusOr<Reply> reply = absl::UnknownError("no answer");
  };
  void ReadReplies() ABSL_LOCKS_EXCLUDED(mu_);
  bool WaitForReply() const;
  void Join();

  const UniqueFd socket_;
  const UniqueFd leave_;  // an eventfd
  const std::function<void()> on_end_;

  mutable absl::Mutex mu_;  // never held across I/O
  std::map<uint64_t, Pending*> pending_ ABSL_GUARDED_BY(mu_);
  uint64_t last_id_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;

  std::thread reader_;  // uses all of the above
};

using ControlChannel = CallChannel<DataPlaneProtocol>;
using FetchChannel = CallChannel<FetchProtocol>;
extern template class CallChannel<DataPlaneProtocol>;
extern template class CallChannel<FetchProtocol>;

}  // namespace kapsule::snapshotter
