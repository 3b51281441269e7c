// Reads of views: answered at once, by the worker that got them, or later.
#pragma once

#include <atomic>

#include "snapshotter/fuse/device.h"
#include "snapshotter/fuse/fetch_client.h"
#include "snapshotter/fuse/read_engine.h"
#include "snapshotter/fuse/read_scratch.h"
#include "snapshotter/fuse/session.h"

namespace kapsule::fuse {

// Thread-safe.
class ReadPath {
 public:
  // All outlive this.
  ReadPath(ReadEngine& engine, RequestMemory& memory, FuseDevice& device, FetchClient& fetch)
      : engine_(engine), memory_(memory), device_(device), fetch_(fetch) {}

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
  // A read that waits.
  struct Parked {
    uint32_t place = 0;  // in the memory
    Session::PendingRead read;
    Again again = Again::kNo;
    bool suspected = false;  // its bytes were bad: once more, when they were checked
    bool far = false;        // counted as one that waits for the registry
  };
  bool ServeWithoutKey(const Session::PendingRead& read, const RequestSlot& slot,
                       const Reply& reply);
  void ServeFromAfar(Session::PendingRead read, const RequestSlot& slot, bool suspected);
  // Whether a read that ended so is to be done again: its bytes are from a registry,
  // and were dropped meanwhile, or are bad and nobody has checked them.
  bool IsToBeDoneAgain(const Session::PendingRead& read, const absl::Status& status,
                       bool suspected);
  // Wait for the view's key, for bytes from its registry, for an I/O thread.
  void Park(Parked parked);
  void WaitForBytes(Parked parked);
  void Defer(Parked parked);
  void Finish(const Parked& parked, ReadScratch& scratch, const Reply& reply);
  void Fail(const Parked& parked, int error);
  void End(const Parked& parked);
  void Send(const Session::PendingRead& read, const Reply& reply, const absl::Status& status);

  ReadEngine& engine_;
  RequestMemory& memory_;
  FuseDevice& device_;
  FetchClient& fetch_;
  std::atomic<bool> said_full_ = false;
};

}  // namespace kapsule::fuse
