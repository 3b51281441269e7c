// kapsule-snapshotter's requests, and how long the process lives.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>

#include "core/control/fetch_control.h"
#include "snapshotter/fetch/data_link.h"

namespace kapsule::fetch {

// Lives as long as the process, which ends by _exit(2): opening may wait for a
// registry.
class FetchServer {
 public:
  // `fetcher` and `outbox` live as long.
  FetchServer(UniqueFd control, Fetcher& fetcher, Outbox& outbox)
      : control_(std::move(control)), fetcher_(fetcher), outbox_(outbox) {}

  // Serves until `signals` is readable; without control as long as kapsule-fuse is
  // connected.
  //   InvalidArgument  the peer does not speak the protocol, and nobody is connected
  absl::Status Run(int signals);

 private:
  absl::Status StartOpeners();
  absl::Status HandleControl();
  void Dispatch(control::ReceivedFetchRequest request);
  void Open(const v1::FetchRequest& request);
  void Connect(uint64_t id, UniqueFd socket);
  void Answer(const v1::FetchReply& reply, const std::vector<int>& fds = {});

  const UniqueFd control_;
  Fetcher& fetcher_;
  Outbox& outbox_;
  bool control_open_ = true;
  UniqueFd lost_;  // eventfd
  std::unique_ptr<DataLink> link_;

  absl::Mutex mu_;
  std::deque<std::function<void()>> openings_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::fetch
