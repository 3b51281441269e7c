// The threads that read requests from /dev/fuse and answer most of them.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "snapshotter/fuse/device.h"
#include "snapshotter/fuse/read_path.h"
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
  // What the threads use; all live as long as the process.
  struct Parts {
    RequestMemory* memory = nullptr;  // taken over
    FuseDevice* device = nullptr;
    Session* session = nullptr;
    ReadPath* reads = nullptr;
  };

  // Maps and locks the reply buffers of `workers` threads.
  static absl::StatusOr<std::unique_ptr<WorkerPool>> Make(unsigned workers,
                                                          const ReadEngine& engine);
  bool locked() const;  // no reply is ever swapped out

  // Does again what a predecessor left in its slots, then serves; once.
  //   ResourceExhausted  no threads
  absl::Status Start(const Parts& parts, Events events);

 private:
  struct Worker {
    LockedBuffer reply;
    std::unique_ptr<ReadScratch> scratch;
  };
  explicit WorkerPool(std::vector<Worker> workers) : workers_(std::move(workers)) {}
  void Run(uint32_t index);
  void DoAgain(Worker& worker, const RequestSlot& slot);
  void Serve(Worker& worker, const RequestSlot& slot);
  void Handle(Worker& worker, const RequestSlot& slot, ByteSpan request);
  void Send(ByteSpan request, ByteSpan reply);

  std::vector<Worker> workers_;
  std::atomic<int> listening_ = 0;  // workers that wait for a request
  // Set by Start() before there are threads.
  Parts parts_;
  Events events_;
};

}  // namespace kapsule::fuse
