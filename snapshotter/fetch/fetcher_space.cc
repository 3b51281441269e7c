// Time and space: waits that end, lists that are stored, blocks that are forgotten.
#include <absl/time/clock.h>

#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "snapshotter/fetch/fetcher.h"

namespace kapsule::fetch {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(200);
constexpr absl::Duration kStoreAfter = absl::Seconds(5);
constexpr uint64_t kStoreBytes = 256 << 20;
constexpr absl::Duration kAskAgain = absl::Seconds(5);
constexpr absl::Duration kWarnAgain = absl::Seconds(5);
constexpr absl::Duration kYoung = absl::Seconds(5);  // what is not forgotten
constexpr uint64_t kMaxGoing = 1024;                 // blocks of a blob at once
constexpr uint64_t kMaxHeadroom = 256 << 20;

// That is kept free, so that what comes need not wait for what goes.
uint64_t HeadroomOf(uint64_t limit) { return std::min(kMaxHeadroom, limit / 8); }

}  // namespace

// Reads that wait may take what streams have to leave free, and streams what
// filling has to: filling never makes anything go.
bool Fetcher::HasRoom(uint64_t bytes, Need need) const {
  const uint64_t limit = options_.cache_bytes;
  const uint64_t allowed = need == Need::kWanted  ? limit + limit / 8
                           : need == Need::kAhead ? limit
                                                  : limit - HeadroomOf(limit);
  return bytes_ + coming_ + bytes <= allowed;
}

uint64_t Fetcher::Excess() const {
  const uint64_t limit = options_.cache_bytes, wanted = limit - HeadroomOf(limit);
  const uint64_t used = bytes_ + coming_;
  return used > wanted ? used - wanted : 0;
}

void Fetcher::SetBytes(Entry& entry, uint64_t bytes) {
  bytes_ = bytes_ - entry.bytes + bytes;
  entry.bytes = bytes;
}

bool Fetcher::MayRemove(const Entry& entry) const {
  return entry.state == State::kClosed && entry.on_disk && entry.plan.waiting() == 0 &&
         (entry.forgotten || !entry.from_before || absl::Now() >= grace_ends_);
}

Fetcher::EntryPtr Fetcher::OldestClosed(bool forgotten_only) const {
  EntryPtr oldest;
  for (const auto& [digest, entry] : entries_) {
    if (!MayRemove(*entry) || entry->users != 0 || (forgotten_only && !entry->forgotten)) continue;
    if (oldest == nullptr || entry->used < oldest->used) oldest = entry;
  }
  return oldest;
}

bool Fetcher::RoomWillCome() const {
  for (const auto& [digest, entry] : entries_)
    if (entry->state == State::kRemoving || MayRemove(*entry)) return true;
  return false;
}

// What has to be prompt.
void Fetcher::Watch() {
  absl::Time age_at = absl::Now() + kYoung;
  while (!PauseOrStop(kTick)) {
    absl::MutexLock lock(&mu_);
    const absl::Time now = absl::Now();
    ExpireWaits(now);
    AskToLetGo(now);
    if (now < age_at) continue;
    age_at = now + kYoung;
    for (const auto& [digest, entry] : entries_) entry->plan.Age();
  }
}

void Fetcher::ExpireWaits(absl::Time now) {
  for (auto it = entries_.begin(); it != entries_.end();) {
    Entry& entry = *it->second;
    if (entry.plan.waiting() > 0) {
      const std::vector<Range> expired = entry.plan.Expire(now);
      for (const Range& range : expired)
        for (uint64_t block = range.first; block < range.end(); ++block)
          entry.suspects.erase(block);
      if (!expired.empty()) TellInVain(entry, expired, now);
    }
    const bool unknown = entry.state == State::kClosed && !entry.on_disk && entry.users == 0;
    it = unknown && entry.plan.waiting() == 0 ? entries_.erase(it) : std::next(it);
  }
}

void Fetcher::TellInVain(Entry& entry, const std::vector<Range>& expired, absl::Time now) {
  const absl::Status why = DeadlineExceeded(
      "the block did not come within {} ms: {}", absl::ToInt64Milliseconds(options_.read_timeout),
      entry.state != State::kOpen ? "the layer is not opened for fetching"
      : entry.last_error.ok()     ? "no answer"
                                  : Describe(entry.last_error));
  Tell(entry, expired, why);
  if (now - entry.warned_at < kWarnAgain) return;
  entry.warned_at = now;
  log::warn("reads of {} fail, from block {} on: {}", entry.digest.text(), expired.front().first,
            Describe(why));
}

// Open blobs give up blocks only where no closed one is left, and only with
// somebody there to say that nobody reads them.
void Fetcher::AskToLetGo(absl::Time now) {
  if (!outbox_.connected()) return;
  uint64_t going = 0;
  std::vector<EntryPtr> open;
  for (const auto& [digest, entry] : entries_) {
    if (entry->state != State::kOpen) continue;
    open.push_back(entry);
    const std::vector<Range> ranges = entry->plan.going();
    for (const Range& range : entry->to_punch) going += entry->blob->BytesOf(range);
    for (const Range& range : ranges) {
      going += entry->blob->BytesOf(range);
    }
    if (now - entry->asked_at < kAskAgain || ranges.empty()) continue;
    entry->asked_at = now;
    ++questions_;
    AskForDrops(*entry, ranges);
  }
  uint64_t excess = Excess();
  if (excess <= going || OldestClosed(false) != nullptr) return;
  excess -= going;
  std::sort(open.begin(), open.end(),
            [](const EntryPtr& a, const EntryPtr& b) { return a->used < b->used; });
  for (const EntryPtr& entry : open) {
    if (excess == 0) return;
    if (!entry->suspects.empty()) continue;
    const uint64_t blocks = std::min(kMaxGoing, CeilDiv(excess, entry->blob->block_size()));
    // Those that are asked for already are to be asked for again in time.
    if (entry->plan.going().empty()) entry->asked_at = now;
    const std::vector<Range> ranges = entry->plan.StartGoing(blocks, ++questions_);
    for (const Range& range : ranges) excess -= std::min(excess, entry->blob->BytesOf(range));
    AskForDrops(*entry, ranges);
  }
}

void Fetcher::AskForDrops(const Entry& entry, const std::vector<Range>& ranges) {
  for (const Range& range : ranges)
    outbox_.Tell({entry.digest,
                  control::FetchDrop{range.first, static_cast<uint32_t>(range.count), questions_}});
}

// What may take its time.
void Fetcher::Keep() {
  for (;;) {
    std::function<void()> chore;
    {
      absl::MutexLock lock(&mu_);
      while (!stopping_ && !(chore = NextChore(absl::Now())))
        keep_.WaitWithTimeout(&mu_, absl::Seconds(1));
      if (stopping_) return;
      keeping_ = true;
    }
    chore();
    absl::MutexLock lock(&mu_);
    keeping_ = false;
  }
}

std::function<void()> Fetcher::NextChore(absl::Time now) {
  for (const auto& [digest, entry] : entries_) {
    if (entry->blob == nullptr || entry->state == State::kRemoving) continue;
    if (!entry->to_punch.empty()) {
      ++entry->users;
      return [this, entry = entry] { Punch(entry); };
    }
    const bool closed = entry->state == State::kClosed && entry->users == 0;
    const bool due = entry->unstored >= kStoreBytes || now - entry->unstored_since >= kStoreAfter;
    if (entry->unstored > 0 && now >= entry->store_at && (closed || due)) {
      ++entry->users;
      return [this, entry = entry] { Store(entry); };
    }
    // Its descriptors and memory are for those that are open.
    if (closed && entry->unstored == 0 && entry->plan.waiting() == 0) {
      entry->blob = nullptr;
      entry->plan = BlobPlan();
    }
  }
  const bool full = Excess() > 0 || disk_full_;
  if (const EntryPtr entry = OldestClosed(/*forgotten_only=*/!full)) {
    disk_full_ = false;
    entry->state = State::kRemoving;
    return [this, entry] { Remove(entry); };
  }
  disk_full_ = false;
  return nullptr;
}

void Fetcher::Store(const EntryPtr& entry) {
  std::shared_ptr<CachedBlob> blob;
  BlockSet there;
  uint64_t stored = 0;
  {
    absl::MutexLock lock(&mu_);
    blob = entry->blob;
    there = entry->plan.there();
    stored = entry->unstored;
  }
  const absl::Status status = blob->Store(there);
  const uint64_t bytes = blob->BytesOnDisk();
  absl::MutexLock lock(&mu_);
  --entry->users;
  entry->store_at = status.ok() ? absl::InfinitePast() : absl::Now() + kStoreAfter;
  if (!status.ok()) {
    log::warn("cache: what came of {} is lost if the node stops now: {}", entry->digest.text(),
              Describe(status));
    return;
  }
  entry->unstored -= stored;
  entry->unstored_since = absl::Now();
  SetBytes(*entry, bytes);
  work_.SignalAll();  // it may take less than was thought
}

void Fetcher::Punch(const EntryPtr& entry) {
  std::shared_ptr<CachedBlob> blob;
  std::vector<Range> ranges;
  BlockSet left;
  {
    absl::MutexLock lock(&mu_);
    blob = entry->blob;
    ranges = std::exchange(entry->to_punch, {});
    left = entry->plan.there();
  }
  const absl::Status status = blob->Punch(ranges, left);
  if (!status.ok()) log::warn("cache: {}: {}", entry->digest.text(), Describe(status));
  const uint64_t bytes = blob->BytesOnDisk();
  absl::MutexLock lock(&mu_);
  --entry->users;
  entry->plan.Gone(ranges);
  counters_.evicted_bytes += entry->bytes - std::min(entry->bytes, bytes);
  SetBytes(*entry, bytes);
  work_.SignalAll();
}

void Fetcher::Remove(const EntryPtr& entry) {
  const absl::Status status = folder_.Remove(entry->digest);
  if (!status.ok()) log::warn("cache: {}", Describe(status));
  absl::MutexLock lock(&mu_);
  counters_.evicted_bytes += entry->bytes;
  SetBytes(*entry, 0);
  entry->state = State::kClosed;
  entry->on_disk = entry->forgotten = false;
  entry->blob = nullptr;
  entry->plan = BlobPlan();
  entry->unstored = 0;
  work_.SignalAll();
}

void Fetcher::StoreAll() {
  std::vector<EntryPtr> entries;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [digest, entry] : entries_) {
      if (entry->blob == nullptr || entry->unstored == 0 || entry->state == State::kRemoving)
        continue;
      ++entry->users;
      entries.push_back(entry);
    }
  }
  for (const EntryPtr& entry : entries) Store(entry);
}

}  // namespace kapsule::fetch
