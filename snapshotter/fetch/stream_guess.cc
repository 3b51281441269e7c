#include "snapshotter/fetch/stream_guess.h"

#include <algorithm>

namespace kapsule::fetch {
namespace {

constexpr size_t kMaxStreams = 8;
constexpr uint64_t kSlack = 2;  // blocks that a reader may leave out

}  // namespace

void StreamGuess::Wanted(Range blocks) {
  const auto found = std::find_if(streams_.begin(), streams_.end(), [&](const Stream& s) {
    return blocks.first >= s.last && blocks.first <= std::max(s.next, s.end) + kSlack;
  });
  if (found == streams_.end()) {
    streams_.push_front({blocks.end(), blocks.end(), 0, blocks.first});
    if (streams_.size() > kMaxStreams) streams_.pop_back();
    return;
  }
  streams_.splice(streams_.begin(), streams_, found);
  Stream& stream = streams_.front();
  if (blocks.end() <= stream.next) return;  // wanted before
  stream.window = stream.window == 0 ? first_window_ : std::min(stream.window * 2, max_window_);
  stream.last = blocks.first;
  stream.next = blocks.end();
  stream.end = std::max(stream.end, stream.next + stream.window);
}

}  // namespace kapsule::fetch
