// Guesses from the blocks that are wanted which ones will be.
#pragma once

#include <list>

#include "snapshotter/fetch/block_set.h"

namespace kapsule::fetch {

// Readers that go through a blob from front to back, several at once. A second
// want that goes on where the first ended makes a stream; from then on the
// window ahead of it is doubled with each, up to the limit. Not thread-safe.
class StreamGuess {
 public:
  struct Stream {
    uint64_t next = 0;    // behind what was wanted
    uint64_t end = 0;     // what lies before it is worth fetching
    uint64_t window = 0;  // blocks; 0: no stream yet
    uint64_t last = 0;    // first of the last want
  };
  // In blocks, at least 1.
  StreamGuess(uint64_t first_window, uint64_t max_window)
      : first_window_(first_window), max_window_(max_window) {}

  void Wanted(Range blocks);
  const std::list<Stream>& streams() const { return streams_; }  // most recent first

 private:
  uint64_t first_window_, max_window_;
  std::list<Stream> streams_;
};

}  // namespace kapsule::fetch
