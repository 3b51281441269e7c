// The threads that read requests from /dev/fuse and write replies to it.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/base/file.h"
#include "snapshotter/fuse/session.h"

namespace kapsule::fuse {

// The threads live as long as the process: a read of /dev/fuse cannot be called
// off, so the process ends by _exit(2) with this object alive.
class WorkerPool {
 public:
  struct Events {
    std::function<void()> initialised;                  // the kernel's INIT has been answered
    std::function<void(absl::Status)> connection_lost;  // the mount is gone, or worse
  };
  // Maps and locks the buffers of `workers` threads.
  static absl::StatusOr<std::unique_ptr<WorkerPool>> Make(unsigned workers);

  // Starts to serve `fuse`; once. `session` lives as long as the process.
  //   ResourceExhausted  no threads
  absl::Status Start(UniqueFd fuse, Session& session, Events events);

 private:
  struct Buffers {
    LockedBuffer request, reply;
  };
  explicit WorkerPool(std::vector<Buffers> buffers) : buffers_(std::move(buffers)) {}
  void Serve(const Buffers& buffers, Session& session) const;

  const std::vector<Buffers> buffers_;  // of each thread
  // Set by Start() before there are threads.
  UniqueFd fuse_;
  Events events_;
};

}  // namespace kapsule::fuse
