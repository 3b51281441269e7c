// The connection to kapsule-fuse: two threads on one socket.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "snapshotter/fetch/fetcher.h"

namespace kapsule::fetch {

class DataLink {
 public:
  // What stands in `outbox` from now on goes to `socket`; what comes from it goes
  // to `fetcher`. Both outlive the link; an earlier link must have ended. `lost` is called, once,
  // on a thread of the link when the peer is gone.
  //   ResourceExhausted  no threads
  static absl::StatusOr<std::unique_ptr<DataLink>> Start(UniqueFd socket, Fetcher& fetcher,
                                                         Outbox& outbox,
                                                         std::function<void()> lost);
  ~DataLink();  // ends the connection
  DataLink(const DataLink&) = delete;
  DataLink& operator=(const DataLink&) = delete;

 private:
  DataLink(UniqueFd socket, Fetcher& fetcher, Outbox& outbox, std::function<void()> lost);
  void Receive();
  void Take(const control::FetchPacket& packet);
  void Send();

  const UniqueFd socket_;
  Fetcher& fetcher_;
  Outbox& outbox_;
  const std::function<void()> lost_;
  const uint64_t number_;  // of the connection, in the outbox
  std::thread receiver_, sender_;
};

}  // namespace kapsule::fetch
