// Shared memory with everything that is under way between the kernel and
// kapsule-fuse. The holder keeps it, so that a successor of a process that was
// killed does its requests again and knows what is open.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <linux/fuse.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/base/file.h"

namespace kapsule::fuse {

// The kernel wants room for FUSE_MIN_READ_BUFFER, or max_write and its headers.
inline constexpr size_t kRequestBuffer = 32 * 1024;
inline constexpr uint32_t kMaxWorkers = 64;
inline constexpr uint32_t kMaxParked = 4096;
inline constexpr uint32_t kMaxViews = 8192;
// A request that was done again this often is answered with an error: it might
// be what ends each process.
inline constexpr uint32_t kMaxAttempts = 8;

// What is written where, all little-endian. A process may be killed between any
// two stores: each comment on an order below is part of the format.

// One worker's request. It is there while the `len` of its fuse_in_header is not
// 0; the other members are reset after that became 0 and before the next read.
struct alignas(64) SharedSlot {
  enum State : uint32_t { kNone = 0, kIntent = 1, kApplied = 2 };
  std::atomic<uint32_t> state;
  std::atomic<uint32_t> attempts;  // how often it was done again
  // Of kIntent: `handles` is to become that of view `view`. Written before.
  std::atomic<uint32_t> view;
  std::atomic<uint32_t> error;  // of kApplied: what is answered, 0 for success
  std::atomic<uint64_t> handles;
  std::atomic<uint64_t> file_handle;  // of `view`; written with it
};

// A read that waits. Its slot is cleared after `used` was set.
struct alignas(128) SharedRead {
  std::atomic<uint32_t> used;
  std::atomic<uint32_t> attempts;
  fuse_in_header header;
  fuse_read_in in;
};

// A view that is known. `used` is set last and cleared first.
struct alignas(64) SharedView {
  std::array<std::byte, 32> digest;
  std::atomic<uint64_t> handles;  // how often it is open
  std::atomic<uint32_t> listed;   // in the directory
  std::atomic<uint32_t> used;
  std::atomic<uint32_t> generation;  // counts what was known in this place; never reset
};

// What the kernel calls an open view: it stands for one use of one place.
inline uint64_t FileHandleOf(const SharedView& view, uint32_t index) {
  return uint64_t{view.generation.load()} << 32 | index;
}

// Where a request stands.
class RequestSlot {
 public:
  RequestSlot(SharedSlot& shared, MutableByteSpan bytes) : shared_(shared), bytes_(bytes) {}

  MutableByteSpan buffer() const { return bytes_; }
  // The request: empty where there is none, no longer than the buffer.
  ByteSpan request() const;
  SharedSlot::State state() const;
  uint32_t attempts() const { return shared_.attempts.load(std::memory_order_relaxed); }
  void CountAttempt() const { shared_.attempts.fetch_add(1, std::memory_order_seq_cst); }

  // Sets `view`'s number of handles so that it is done once whenever the process
  // ends: a successor of a process that ended within finishes it, and then only
  // answers the request. `index` is the view's; the caller holds the lock of all
  // views.
  void SetHandles(SharedView& view, uint32_t index, uint64_t handles) const;
  // The request changes nothing and is answered with `error`; a successor will
  // not come to another result.
  void SetAnswered(int error) const;
  // Of kApplied: what is answered, 0 for success, and what SetHandles() was for.
  int error() const;
  uint64_t file_handle() const { return shared_.file_handle.load(); }
  // Finishes what SetHandles() began. InvalidArgument: no such view.
  absl::Status Complete(std::span<SharedView> views) const;

  // The request has been answered or is kept elsewhere.
  void Clear() const;

 private:
  SharedSlot& shared_;
  const MutableByteSpan bytes_;
};

// Thread-safe, but for what belongs to one worker or to the lock of the views.
class RequestMemory {
 public:
  // New memory with room for `workers` (at most kMaxWorkers), locked where the
  // limit allows.
  //   ResourceExhausted  no memory
  static absl::StatusOr<std::unique_ptr<RequestMemory>> Make(unsigned workers);
  // A predecessor's, which may still be at work: nothing is written before
  // TakeOver().
  //   InvalidArgument  not such a file: its size, seals or numbers
  //   Unimplemented    of another version
  static absl::StatusOr<std::unique_ptr<RequestMemory>> Adopt(UniqueFd fd, unsigned workers);
  ~RequestMemory();

  int fd() const { return fd_.get(); }
  bool adopted() const { return adopted_; }
  bool locked() const { return locked_; }  // never swapped out

  // Begins to use it, the predecessor having ended: completes what it intended.
  // Once, before the following.
  void TakeOver() ABSL_LOCKS_EXCLUDED(mu_);

  // The kernel's INIT has been answered.
  bool initialised() const;
  void SetInitialised() const;

  unsigned workers() const { return workers_; }
  // Slots that this process or one before has used: workers() or more.
  uint32_t slots() const;
  RequestSlot slot(uint32_t index) const;  // index < slots()

  std::span<SharedView> views() const;  // kMaxViews

  // Keeps a read; nullopt where kMaxParked wait.
  std::optional<uint32_t> Park(const fuse_in_header& header, const fuse_read_in& in,
                               uint32_t attempts) ABSL_LOCKS_EXCLUDED(mu_);
  SharedRead& parked(uint32_t index) const;  // index < kMaxParked
  void Unpark(uint32_t index) ABSL_LOCKS_EXCLUDED(mu_);
  // What a predecessor left, to be answered and taken away by Unpark().
  std::vector<uint32_t> ParkedReads() const;

 private:
  struct Layout;
  RequestMemory(UniqueFd fd, unsigned workers, bool adopted)
      : fd_(std::move(fd)), workers_(workers), adopted_(adopted) {}
  absl::Status Map();
  absl::Status Check() const;
  void Lock();

  const UniqueFd fd_;
  const unsigned workers_;
  const bool adopted_;
  Layout* layout_ = nullptr;
  bool locked_ = false;

  absl::Mutex mu_;
  std::vector<uint32_t> free_reads_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::fuse
