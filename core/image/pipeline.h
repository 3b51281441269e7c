// The pieces of a layer on their way through stages that run beside each other:
// each stage has a thread of its own and takes the pieces in order.
#pragma once

#include <absl/synchronization/mutex.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/status.h"
#include "core/crypt/layer_cipher.h"

namespace kapsule::image {

inline constexpr size_t kPieceSize = 1 << 20;

// Part of a layer; the stages work on its bytes in place.
struct Piece {
  MutableByteSpan room;  // kPieceSize bytes, aligned to that
  size_t size = 0;       // bytes of `room` in use
  uint64_t offset = 0;   // in the blob
  bool covered = true;   // part of the covered range, not of the index
  // Where the content of the file begins that is being written: at `size` or
  // behind where there is none.
  size_t content_from = kPieceSize;
  std::vector<crypt::ChunkTag> tags = {};  // of its chunks, in order

  MutableByteSpan bytes() const { return room.first(size); }
};

// A ring of pieces, so that memory is bounded and used again. Next(), Push(),
// WaitFor() and bytes_passed() are for one thread.
class Pipeline {
 public:
  using Stage = std::function<absl::Status(Piece&)>;

  // ResourceExhausted: no thread or no memory.
  static absl::StatusOr<std::unique_ptr<Pipeline>> Start(std::vector<Stage> stages, size_t pieces);
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;
  // Stages end with the piece that they are at; others on their way are dropped.
  ~Pipeline();

  // The first error of a stage ends all stages; it is then what these return.

  // The piece to fill; the same one until it is pushed. Waits until one is free.
  absl::StatusOr<Piece*> Next() ABSL_LOCKS_EXCLUDED(mu_);
  // Sends the piece of Next() on its way.
  absl::Status Push() ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until every piece that was pushed has passed stage number `stage`; what
  // it wrote can then be read.
  absl::Status WaitFor(size_t stage) ABSL_LOCKS_EXCLUDED(mu_);

  // The sizes, together, of the pieces that have passed all stages.
  uint64_t bytes_passed() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct FreeMemory {
    void operator()(std::byte* memory) const;
  };

  Pipeline(std::vector<Stage> stages, size_t pieces);
  void Run(size_t stage) ABSL_LOCKS_EXCLUDED(mu_);
  bool Ended() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || !status_.ok(); }

  const std::vector<Stage> stages_;
  const std::unique_ptr<std::byte, FreeMemory> memory_;
  std::vector<Piece> pieces_;  // number n is at n modulo their count

  mutable absl::Mutex mu_;
  // Pieces that were pushed, that have passed stage 0, stage 1, …
  std::vector<uint64_t> passed_ ABSL_GUARDED_BY(mu_);
  uint64_t bytes_passed_ ABSL_GUARDED_BY(mu_) = 0;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> threads_;  // one each stage
};

}  // namespace kapsule::image
