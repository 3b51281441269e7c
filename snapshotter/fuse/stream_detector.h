// Which reads are parts of streams, and what a stream will read next.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace kapsule::fuse {

// Several requests of one reader are on their way together and arrive in any
// order, so what is remembered are runs of adjacent ones, which grow together. A
// run that is longer than what the kernel reads around one page fault is a
// stream. Not thread-safe.
class StreamDetector {
 public:
  using Clock = std::chrono::steady_clock;
  // Smaller requests are no part of a stream: the kernel reads ahead in larger ones.
  static constexpr size_t kMinRequest = 64 << 10;
  static constexpr size_t kMaxRuns = 64;
  static constexpr size_t kMaxAhead = 6;  // blocks

  // Streams are read ahead in blocks of `block_size`; `slots` blocks can be kept
  // for all streams together.
  StreamDetector(uint64_t block_size, size_t slots) : block_size_(block_size), slots_(slots) {}

  // Blocks first, first + 1, …, end - 1 of the layer should be on their way now.
  struct Plan {
    size_t run = 0;
    uint64_t first = 0, end = 0;
  };
  // A request for bytes [begin, end) of a layer that is read up to `limit`.
  Plan Note(uint64_t layer, uint64_t begin, uint64_t end, uint64_t limit, Clock::time_point now);
  // How far the last plan was followed: the blocks before `end` are not asked for
  // again.
  void Followed(const Plan& plan, uint64_t end) { runs_[plan.run].next_block = end; }

 private:
  struct Run {
    uint64_t layer = 0;  // 0: no run
    uint64_t begin = 0, end = 0;
    uint64_t length = 0;      // end - begin, unless it is longer than is remembered
    uint64_t next_block = 0;  // to read ahead
    uint64_t note = 0;        // when it was used last, in requests
    Clock::time_point used;
    bool stream = false;
  };
  Run* Extended(uint64_t layer, uint64_t begin, uint64_t end);
  Run& Fresh(uint64_t layer, uint64_t begin, uint64_t end);
  void Absorb(Run& run);
  bool IsOld(const Run& run) const;
  uint64_t BlocksAhead(const Run& run, Clock::time_point now) const;

  const uint64_t block_size_;
  const size_t slots_;
  std::array<Run, kMaxRuns> runs_;
  uint64_t notes_ = 0;
};

}  // namespace kapsule::fuse
