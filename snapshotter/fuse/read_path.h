// Reads of views: answered at once, by the worker that got them, or later.
#pragma once

#include <atomic>

#include "snapshotter/fuse/device.h"
#include "snapshotter/fuse/read_engine.h"
#include "snapshotter/fuse/read_scratch.h"
#include "snapshotter/fuse/session.h"

namespace kapsule::fuse {

// Thread-safe.
class ReadPath {
 public:
  // All outlive this.
  ReadPath(ReadEngine& engine, RequestMemory& memory, FuseDevice& device)
      : engine_(engine), memory_(memory), device_(device) {}

  // Answers the read of `slot`, or keeps it elsewhere until it can be: either
  // way the slot may be cleared afterwards. Where others listen for requests, it
  // may wait for the disk.
  void Serve(Session::PendingRead read, const RequestSlot& slot, ReadScratch& scratch,
             const Reply& reply, bool others_listen);
  // Goes on with the read that a predecessor kept at `parked`.
  void Resume(uint32_t parked, const Session& session);

 private:
  // Whether the predecessor's attempts are counted.
  enum class Again { kNo, kYes };
  bool ServeWithoutKey(const Session::PendingRead& read, const RequestSlot& slot,
                       const Reply& reply);
  // Waits for the view's key, then for its bytes.
  void Park(uint32_t parked, Session::PendingRead read, Again again);
  void Defer(uint32_t parked, Session::PendingRead read, Again again);
  void Finish(const Session::PendingRead& read, ReadScratch& scratch, const Reply& reply);
  void Send(const Session::PendingRead& read, const Reply& reply, const absl::Status& status);

  ReadEngine& engine_;
  RequestMemory& memory_;
  FuseDevice& device_;
  std::atomic<bool> said_full_ = false;
};

}  // namespace kapsule::fuse
