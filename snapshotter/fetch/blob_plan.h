// What is to be fetched of one blob, in which order, and what may be forgotten.
// Knows numbers of blocks alone: no file, no connection, no thread.
#pragma once

#include <absl/time/time.h>

#include <map>
#include <optional>
#include <set>
#include <vector>

#include "snapshotter/fetch/block_set.h"
#include "snapshotter/fetch/stream_guess.h"

namespace kapsule::fetch {

enum class Need {
  kWanted,  // reads wait
  kAhead,   // reads will probably come
  kFill,    // all the rest
};

// A block is there, or in flight, or going (it was there and is being forgotten),
// or absent. Not thread-safe.
class BlobPlan {
 public:
  explicit BlobPlan(StreamGuess guess = StreamGuess(1, 1)) : guess_(std::move(guess)) {}
  // The blob is open and has `there`. Before that wants can only wait. Gives back
  // those that are beyond its end.
  std::vector<Range> Begin(BlockSet there, StreamGuess guess);

  const BlockSet& there() const { return there_; }
  bool HasAll(Range blocks) const { return there_.Next(false, blocks.first) >= blocks.end(); }
  uint64_t waiting() const { return waits_.size(); }
  std::optional<absl::Time> OldestWant() const;  // of those that Next() would give

  // Reads wait for `blocks` until `deadline`, and for those that are wanted already
  // as long as before. How many are there already.
  uint64_t Want(Range blocks, absl::Time now, absl::Time deadline);
  // The same of no reader whose next wants could be guessed.
  uint64_t WaitFor(Range blocks, absl::Time now, absl::Time deadline);
  // The next of at most `max` absent blocks; they are in flight from now on.
  std::optional<Range> Next(Need need, uint64_t max);
  // How many absent blocks Next() would give for that need, up to `enough`.
  uint64_t Pending(Need need, uint64_t enough) const;
  // True where reads waited for it.
  bool Arrived(uint64_t block);
  void Landed(Range flight);  // what Next() gave: nothing more of it comes
  // Nobody waits any more for the waits before `now`; for all of them.
  std::vector<Range> Expire(absl::Time now);
  std::vector<Range> Abandon();

  // Not there, though it was thought so.
  void Lost(uint64_t block) { there_.Remove(block); }

  // Up to `count` blocks begin to go, for which the reader is to be asked: first those
  // that were not touched since the last Age() but one, then those not since the last.
  // The number of that question is greater than of any before, to any plan of the blob.
  std::vector<Range> StartGoing(uint64_t count, uint64_t question);
  std::vector<Range> going() const;  // and not let go of yet: may be asked for again
  bool IsGoing(uint64_t block) const { return going_.contains(block); }
  // The answer to a question: nobody reads these any more. It counts for blocks that have
  // been going since then. What somebody waits for is there again; the rest can be
  // punched, and is absent after Gone().
  struct LetGo {
    std::vector<Range> punch, kept;
  };
  LetGo Release(Range blocks, uint64_t question);
  void Gone(const std::vector<Range>& punched);
  void Stay();  // what was going, and is not let go of yet, is there again
  void Age();

 private:
  struct Wait {
    uint64_t number = 0;  // in the order of asking
    absl::Time deadline;
  };
  struct Asked {
    uint64_t block = 0;
    absl::Time when;
  };
  bool CanFetch(uint64_t block) const;
  std::optional<Range> Grow(uint64_t first, uint64_t end, uint64_t max, bool only_wanted) const;
  std::optional<Range> Find(Need need, uint64_t max) const;
  void StopWaiting(std::map<uint64_t, Wait>::iterator wait);

  StreamGuess guess_;
  BlockSet there_;
  std::map<uint64_t, Wait> waits_;   // by block
  std::map<uint64_t, Asked> order_;  // by number
  uint64_t last_number_ = 0;
  std::vector<Range> in_flight_;
  std::map<uint64_t, uint64_t> going_;  // by block: the question with which it began
  std::set<uint64_t> punching_;
  uint64_t hand_ = 0;       // where the search for something to forget goes on
  uint64_t fill_from_ = 0;  // where readers were last
  BlockSet young_, old_;    // touched since the last Age(), since the one before
};

// Sorted blocks as ranges of at most `max`.
template <typename Blocks>
std::vector<Range> RangesOf(const Blocks& blocks, uint64_t max) {
  std::vector<Range> ranges;
  for (const uint64_t block : blocks) {
    if (!ranges.empty() && ranges.back().end() == block && ranges.back().count < max) {
      ++ranges.back().count;
    } else {
      ranges.push_back({block, 1});
    }
  }
  return ranges;
}

}  // namespace kapsule::fetch
