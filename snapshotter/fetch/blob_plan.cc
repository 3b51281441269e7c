#include "snapshotter/fetch/blob_plan.h"

#include <algorithm>
#include <utility>

#include "core/control/fetch_wire.h"

namespace kapsule::fetch {
namespace {

constexpr uint64_t kPerPacket = control::kMaxFetchBlocks;

}  // namespace

std::vector<Range> BlobPlan::Begin(BlockSet there, StreamGuess guess) {
  there_ = std::move(there);
  guess_ = std::move(guess);
  young_ = old_ = BlockSet(there_.size());
  punching_.clear();
  std::vector<uint64_t> beyond;
  for (auto it = waits_.lower_bound(there_.size()); it != waits_.end();) {
    beyond.push_back(it->first);
    StopWaiting(it++);
  }
  for (auto it = waits_.begin(); it != waits_.end();) {
    const auto wait = it++;
    if (there_.Has(wait->first)) StopWaiting(wait);
  }
  return RangesOf(beyond, kPerPacket);
}

uint64_t BlobPlan::Want(Range blocks, absl::Time now, absl::Time deadline) {
  guess_.Wanted(blocks);
  fill_from_ = blocks.first;
  return WaitFor(blocks, now, deadline);
}

uint64_t BlobPlan::WaitFor(Range blocks, absl::Time now, absl::Time deadline) {
  uint64_t there = 0;
  for (uint64_t block = blocks.first; block < blocks.end(); ++block) {
    if (block < there_.size()) young_.Add(block);
    if (block < there_.size() && there_.Has(block)) {
      ++there;
      continue;
    }
    // A want that is only repeated, as kapsule-fuse does, gets no more time.
    if (!waits_.try_emplace(block, Wait{last_number_ + 1, deadline}).second) continue;
    order_[++last_number_] = {block, now};
  }
  return there;
}

void BlobPlan::StopWaiting(std::map<uint64_t, Wait>::iterator wait) {
  order_.erase(wait->second.number);
  waits_.erase(wait);
}

bool BlobPlan::CanFetch(uint64_t block) const {
  return block < there_.size() && !there_.Has(block) && !going_.contains(block) &&
         !punching_.contains(block) &&
         std::none_of(in_flight_.begin(), in_flight_.end(),
                      [&](const Range& flight) { return flight.Holds(block); });
}

// From the first block in [first, end) that can be fetched on.
std::optional<Range> BlobPlan::Grow(uint64_t first, uint64_t end, uint64_t max,
                                    bool only_wanted) const {
  end = std::min(end, there_.size());
  first = there_.Next(false, first);
  while (first < end && !CanFetch(first)) first = there_.Next(false, first + 1);
  if (first >= end) return std::nullopt;
  Range range{first, 1};
  while (range.count < max && range.end() < end && CanFetch(range.end()) &&
         (!only_wanted || waits_.contains(range.end())))
    ++range.count;
  return range;
}

std::optional<Range> BlobPlan::Find(Need need, uint64_t max) const {
  switch (need) {
    case Need::kWanted:
      for (const auto& [number, asked] : order_)
        if (CanFetch(asked.block))
          return Grow(asked.block, there_.size(), max, /*only_wanted=*/true);
      return std::nullopt;
    case Need::kAhead:
      for (const StreamGuess::Stream& stream : guess_.streams()) {
        const uint64_t piece = std::clamp<uint64_t>(stream.window / 4, 1, max);
        if (const auto range = Grow(stream.next, stream.end, piece, false)) return range;
      }
      return std::nullopt;
    case Need::kFill:
      if (there_.count() == there_.size()) return std::nullopt;
      if (const auto range = Grow(fill_from_, there_.size(), max, false)) return range;
      return Grow(0, fill_from_, max, false);
  }
  return std::nullopt;
}

std::optional<Range> BlobPlan::Next(Need need, uint64_t max) {
  const std::optional<Range> range = Find(need, max);
  if (range) in_flight_.push_back(*range);
  return range;
}

uint64_t BlobPlan::Pending(Need need, uint64_t enough) const {
  if (need != Need::kWanted) return Find(need, 1).has_value() ? 1 : 0;
  uint64_t pending = 0;
  for (auto it = order_.begin(); it != order_.end() && pending < enough; ++it)
    pending += CanFetch(it->second.block);
  return pending;
}

std::optional<absl::Time> BlobPlan::OldestWant() const {
  for (const auto& [number, asked] : order_)
    if (CanFetch(asked.block)) return asked.when;
  return std::nullopt;
}

bool BlobPlan::Arrived(uint64_t block) {
  there_.Add(block);
  young_.Add(block);
  const auto wait = waits_.find(block);
  if (wait == waits_.end()) return false;
  StopWaiting(wait);
  return true;
}

void BlobPlan::Landed(Range flight) {
  const auto found = std::find(in_flight_.begin(), in_flight_.end(), flight);
  if (found != in_flight_.end()) in_flight_.erase(found);
}

std::vector<Range> BlobPlan::Expire(absl::Time now) {
  std::vector<uint64_t> expired;
  for (auto it = waits_.begin(); it != waits_.end();) {
    const auto wait = it++;
    if (wait->second.deadline > now) continue;
    expired.push_back(wait->first);
    StopWaiting(wait);
  }
  return RangesOf(expired, kPerPacket);
}

std::vector<Range> BlobPlan::Abandon() { return Expire(absl::InfiniteFuture()); }

std::vector<Range> BlobPlan::StartGoing(uint64_t count, uint64_t question) {
  std::set<uint64_t> chosen;
  const auto choose = [&](const BlockSet* also_spared) {
    for (uint64_t seen = 0; seen < there_.count() && chosen.size() < count; ++seen) {
      uint64_t block = there_.Next(true, hand_);
      if (block == there_.size()) block = there_.Next(true, 0);
      hand_ = block + 1;
      const bool spared = young_.Has(block) || (also_spared && also_spared->Has(block));
      if (!spared) chosen.insert(block);
    }
  };
  choose(&old_);
  choose(nullptr);
  for (const uint64_t block : chosen) {
    there_.Remove(block);
    going_[block] = question;
  }
  return RangesOf(chosen, kPerPacket);
}

std::vector<Range> BlobPlan::going() const {
  std::vector<uint64_t> blocks;
  for (const auto& [block, question] : going_) blocks.push_back(block);
  return RangesOf(blocks, kPerPacket);
}

BlobPlan::LetGo BlobPlan::Release(Range blocks, uint64_t question) {
  std::vector<uint64_t> punch, kept;
  for (auto it = going_.lower_bound(blocks.first);
       it != going_.end() && it->first < blocks.end();) {
    const auto [block, since] = *it;
    if (since > question) {
      ++it;
      continue;
    }
    it = going_.erase(it);
    if (waits_.contains(block)) {
      Arrived(block);
      kept.push_back(block);
    } else {
      punching_.insert(block);
      punch.push_back(block);
    }
  }
  return {RangesOf(punch, kPerPacket), RangesOf(kept, kPerPacket)};
}

void BlobPlan::Gone(const std::vector<Range>& punched) {
  for (const Range& range : punched)
    punching_.erase(punching_.lower_bound(range.first), punching_.lower_bound(range.end()));
}

void BlobPlan::Stay() {
  for (const auto& [block, question] : going_) there_.Add(block);
  going_.clear();
}

void BlobPlan::Age() { old_ = std::exchange(young_, BlockSet(there_.size())); }

}  // namespace kapsule::fetch
