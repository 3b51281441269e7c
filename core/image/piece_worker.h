// A thread that works through the pieces of a layer, so that hashes which do
// not depend on each other run on different cores.
#pragma once

#include <absl/synchronization/mutex.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "core/base/bytes.h"
#include "core/base/status.h"

namespace kapsule::image {

inline constexpr size_t kPieceSize = 1 << 20;

// Up to kPieceSize bytes of a layer. `plain` and `stored` are views of the same
// bytes where the layer is not encrypted.
struct Piece {
  uint64_t offset = 0;  // in the blob
  bool covered = true;  // part of the covered range, not of the index
  ByteSpan plain, stored;
  std::unique_ptr<std::byte[]> buffers;  // what the views look at
};
using SharedPiece = std::shared_ptr<const Piece>;

// Pushing and finishing are for one thread.
class PieceWorker {
 public:
  using Work = std::function<absl::Status(const Piece&)>;

  // `work` is called by the worker's own thread, in order, until it fails.
  explicit PieceWorker(Work work);
  PieceWorker(const PieceWorker&) = delete;
  PieceWorker& operator=(const PieceWorker&) = delete;
  ~PieceWorker();  // drops what waits

  // Waits while kQueued pieces wait. The status is that of earlier pieces.
  absl::Status Push(SharedPiece piece) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until every piece is done; what `work` wrote can then be read.
  absl::Status Drain() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  static constexpr size_t kQueued = 4;

  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || !queue_.empty(); }
  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return queue_.size() < kQueued; }
  bool IsIdle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return queue_.empty() && !busy_; }

  const Work work_;
  absl::Mutex mu_;
  std::deque<SharedPiece> queue_ ABSL_GUARDED_BY(mu_);
  bool busy_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // the last member: it starts in the constructor
};

}  // namespace kapsule::image
