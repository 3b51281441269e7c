// What kapsule-fuse does for the snapshotter, request by request.
#pragma once

#include <filesystem>
#include <memory>

#include "core/control/control_wire.h"
#include "snapshotter/fuse/layer_opener.h"
#include "snapshotter/fuse/task_pool.h"
#include "snapshotter/fuse/worker_pool.h"

namespace kapsule::fuse {

// Lives as long as the process, which ends by _exit(2): its threads use it.
class ControlServer {
 public:
  ControlServer(UniqueFd control, std::filesystem::path keyprovider,
                std::unique_ptr<WorkerPool> workers);

  // Answers requests until the control socket closes or SIGTERM or SIGINT
  // arrives, which must be blocked: then OK.
  //   InvalidArgument  the peer does not speak the protocol
  //   Unavailable      the FUSE mount is gone
  absl::Status Run();

 private:
  absl::Status HandlePacket();
  void Dispatch(control::ReceivedRequest request);
  void Serve(uint64_t id, UniqueFd fuse);
  void Open(const v1::DataPlaneRequest& request, std::vector<UniqueFd> fds);
  void Authorise(const v1::DataPlaneRequest& request, UniqueFd annotations);
  // Runs `task` in `pool`, or answers that there is too much to do.
  void Enqueue(TaskPool& pool, uint64_t id, std::function<v1::DataPlaneReply()> task);
  void Answer(const v1::DataPlaneReply& reply);
  void ConnectionLost(const absl::Status& why);

  const UniqueFd control_;
  const std::unique_ptr<WorkerPool> workers_;
  ViewTable views_;
  Session session_{views_};
  LayerOpener opener_;
  // Plain layers wait for no keyprovider, so they have threads of their own.
  TaskPool keyed_, plain_;
  UniqueFd lost_fd_;  // an eventfd: the FUSE connection has ended
  bool serving_ = false;

  absl::Mutex mu_;
  absl::Status lost_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::fuse
