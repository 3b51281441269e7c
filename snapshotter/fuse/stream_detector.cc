#include "snapshotter/fuse/stream_detector.h"

#include <algorithm>

#include "core/base/bytes.h"

namespace kapsule::fuse {
namespace {

// The kernel's read-ahead window: what one random page fault asks for.
constexpr uint64_t kWindow = 2 << 20;
// Requests this far behind a stream's end are late, not another reader's.
constexpr uint64_t kRemembered = 8 << 20;
// Single requests find their neighbours among as many later ones, so that random
// ones seldom do.
constexpr uint64_t kNotesToWait = 32;
// A stream that nobody has read for so long takes no share of the slots.
constexpr auto kIdle = std::chrono::milliseconds(500);

}  // namespace

StreamDetector::Plan StreamDetector::Note(uint64_t layer, uint64_t begin, uint64_t end,
                                          uint64_t limit, Clock::time_point now) {
  ++notes_;
  Run* run = Extended(layer, begin, end);
  if (run == nullptr) run = &Fresh(layer, begin, end);
  Absorb(*run);
  run->note = notes_;
  run->used = now;
  run->begin = std::max(run->begin, run->end - std::min(run->end, kRemembered));

  Plan plan;
  plan.run = static_cast<size_t>(run - runs_.data());
  if (run->length <= kWindow) return plan;
  run->stream = true;
  // What is read now is not read ahead: it begins with the next whole block.
  plan.first = std::max(run->next_block, CeilDiv(run->end, block_size_));
  plan.end =
      std::min(run->end / block_size_ + 1 + BlocksAhead(*run, now), CeilDiv(limit, block_size_));
  plan.end = std::max(plan.first, plan.end);
  return plan;
}

// The run that the request continues at either end, or is late for.
StreamDetector::Run* StreamDetector::Extended(uint64_t layer, uint64_t begin, uint64_t end) {
  Run* late = nullptr;
  for (Run& run : runs_) {
    if (run.layer != layer || IsOld(run)) continue;
    if (begin == run.end) {
      run.end = end;
      run.length += end - begin;
      return &run;
    }
    if (end == run.begin && !run.stream) {
      run.begin = begin;
      run.length += end - begin;
      return &run;
    }
    if (begin >= run.begin && end <= run.end) late = &run;
  }
  return late;
}

StreamDetector::Run& StreamDetector::Fresh(uint64_t layer, uint64_t begin, uint64_t end) {
  Run& oldest = *std::min_element(runs_.begin(), runs_.end(), [this](const Run& a, const Run& b) {
    return std::pair(!IsOld(a), a.note) < std::pair(!IsOld(b), b.note);
  });
  oldest = Run{};
  oldest.layer = layer;
  oldest.begin = begin;
  oldest.end = end;
  oldest.length = end - begin;
  return oldest;
}

// Requests that arrived too early were runs of their own until now.
void StreamDetector::Absorb(Run& run) {
  for (bool again = true; again;) {
    again = false;
    for (Run& next : runs_) {
      if (&next == &run || next.layer != run.layer || next.begin != run.end || IsOld(next))
        continue;
      run.end = next.end;
      run.length += next.length;
      run.next_block = std::max(run.next_block, next.next_block);
      next = Run{};
      again = true;
    }
  }
}

bool StreamDetector::IsOld(const Run& run) const {
  return run.layer == 0 || (!run.stream && notes_ - run.note > kNotesToWait);
}

// The slots are shared out; one of a stream's own is being read.
uint64_t StreamDetector::BlocksAhead(const Run& run, Clock::time_point now) const {
  const size_t streams =
      std::max<size_t>(1, std::count_if(runs_.begin(), runs_.end(), [now](const Run& other) {
                         return other.stream && now - other.used < kIdle;
                       }));
  const uint64_t share = std::max<size_t>(slots_ / streams, 2) - 1;
  return std::min({share, run.length / block_size_, uint64_t{kMaxAhead}});
}

}  // namespace kapsule::fuse
