// The threads that fetch: which range next, and what became of it.
#include <absl/time/clock.h>

#include <algorithm>
#include <new>
#include <utility>

#include "core/base/log.h"
#include "core/blob/direct_file.h"
#include "snapshotter/fetch/failures.h"
#include "snapshotter/fetch/fetcher.h"

namespace kapsule::fetch {
namespace {

constexpr uint64_t kMaxRangeBytes = 8 << 20;
constexpr uint64_t kMaxBufferBytes = 128 << 20;
constexpr absl::Duration kIdle = absl::Seconds(2);
constexpr absl::Duration kFirstPause = absl::Milliseconds(200), kMaxPause = absl::Seconds(5);
constexpr absl::Duration kBrokenPause = absl::Seconds(2), kMaxLater = absl::Seconds(60);
constexpr int kMaxRefusals = 3;
constexpr uint64_t kLittleSpace = 64 << 20;  // on the disk

}  // namespace

void Fetcher::Work() {
  while (std::optional<Job> job = Take()) {
    absl::Status status;
    try {
      status = Run(*job);
    } catch (const std::bad_alloc&) {
      status = ResourceExhausted("no memory for a block");
    }
    Finish(*job, status);
  }
}

std::optional<Fetcher::Job> Fetcher::Take() {
  absl::MutexLock lock(&mu_);
  while (!stopping_) {
    absl::Time wake = absl::InfiniteFuture();
    if (std::optional<Job> job = Choose(absl::Now(), &wake)) return job;
    work_.WaitWithDeadline(&mu_, wake);
  }
  return std::nullopt;
}

// `wake`: when there may be something to do that nobody signals.
std::optional<Fetcher::Job> Fetcher::Choose(absl::Time now, absl::Time* wake) {
  if (std::optional<Job> job = ChooseCheck()) return job;
  for (const Need need : {Need::kWanted, Need::kAhead, Need::kFill})
    if (MayRun(need, now, wake))
      if (std::optional<Job> job = ChooseRange(need, now, wake)) return job;
  return std::nullopt;
}

std::optional<Fetcher::Job> Fetcher::ChooseCheck() {
  for (const auto& [digest, entry] : entries_) {
    if (entry->unchecked.empty() || entry->state != State::kOpen) continue;
    const uint64_t block = entry->unchecked.front();
    entry->unchecked.pop_front();
    return Begin({entry, /*check=*/true, Need::kWanted, {block, 1}});
  }
  return std::nullopt;
}

// One connection is left for what will be wanted.
bool Fetcher::MayRun(Need need, absl::Time now, absl::Time* wake) const {
  if (need == Need::kWanted) return true;
  if (options_.connections > 1 && running_ + 1 >= options_.connections) return false;
  if (need == Need::kAhead) return true;
  if (options_.fill == Fill::kOff || filling_ >= std::max(1u, options_.connections / 2))
    return false;
  if (options_.fill == Fill::kEager || now - last_want_ >= kIdle) return true;
  *wake = std::min(*wake, last_want_ + kIdle);
  return false;
}

std::optional<Fetcher::Job> Fetcher::ChooseRange(Need need, absl::Time now, absl::Time* wake) {
  EntryPtr chosen;
  absl::Time oldest = absl::InfiniteFuture();
  for (const auto& [digest, entry] : entries_) {
    const bool open = entry->state == State::kOpen || entry->state == State::kOpening;
    if (!open || entry->blob == nullptr) continue;
    // A registry that does not answer keeps one connection, not all.
    if (entry->delay > absl::ZeroDuration() && entry->jobs > 0) continue;
    if (need != Need::kWanted && (entry->forgotten || entry->state != State::kOpen)) continue;
    const absl::Time asked = need == Need::kWanted ? entry->plan.OldestWant().value_or(oldest)
                             : entry->plan.Pending(need, 1) > 0 ? absl::InfinitePast()
                                                                : oldest;
    if (asked >= oldest) continue;
    const absl::Time from =
        need == Need::kWanted ? entry->retry_at : std::max(entry->retry_at, entry->later_at);
    if (from > now) {
      *wake = std::min(*wake, from);
      continue;
    }
    const uint64_t bytes = entry->blob->block_size();
    if (!HasRoom(need == Need::kWanted ? bytes : std::max(bytes, kMaxRangeBytes), need)) {
      if (need == Need::kWanted)
        entry->last_error = ResourceExhausted("the cache is full of layers that are in use");
      continue;
    }
    if (buffers_ > 0 && buffers_ + bytes > kMaxBufferBytes) continue;
    oldest = asked;
    chosen = entry;
  }
  if (chosen == nullptr) return std::nullopt;
  const std::optional<Range> range = chosen->plan.Next(need, MaxBlocks(*chosen, need));
  if (!range) return std::nullopt;
  return Begin({chosen, /*check=*/false, need, *range});
}

// What many wait for is shared out among the connections that are free.
uint64_t Fetcher::MaxBlocks(const Entry& entry, Need need) const {
  const uint64_t most = std::max<uint64_t>(1, kMaxRangeBytes / entry.blob->block_size());
  if (need != Need::kWanted) return most;
  const uint64_t idle =
      std::max(1u, options_.connections - std::min(running_, options_.connections));
  return std::clamp<uint64_t>(CeilDiv(entry.plan.Pending(need, most * idle), idle), 1, most);
}

Fetcher::Job Fetcher::Begin(Job job) {
  Entry& entry = *job.entry;
  job.blob = entry.blob;
  job.source = entry.source;
  job.left = job.check ? 0 : entry.blob->BytesOf(job.range);
  ++entry.users;
  ++entry.jobs;
  ++running_;
  filling_ += job.need == Need::kFill;
  coming_ += job.left;
  job.evicted = counters_.evicted_bytes;
  buffers_ += job.blob->block_size();
  return job;
}

absl::Status Fetcher::Run(Job& job) {
  blob::AlignedBuffer buffer(job.blob->block_size());
  return job.check ? RunCheck(job, buffer.bytes()) : RunRange(job, buffer.bytes());
}

absl::Status Fetcher::RunCheck(const Job& job, MutableByteSpan buffer) {
  const uint64_t block = job.range.first;
  const FetchBytes fetch =
      BytesFrom(*job.source, LimitsOf(job.entry, absl::Now() + options_.read_timeout));
  absl::StatusOr<bool> good = job.blob->Check(block, buffer, fetch);
  absl::MutexLock lock(&mu_);
  Entry& entry = *job.entry;
  if (good.ok() && *good) {
    if (!entry.plan.HasAll(job.range)) {  // it goes meanwhile: fetched again then
      const absl::Time soon = absl::Now();
      entry.plan.WaitFor(job.range, soon, soon + options_.read_timeout);
      return absl::OkStatus();
    }
    entry.suspects.erase(block);
    outbox_.Tell({entry.digest, control::FetchChecked{block, job.blob->file()}});
    outbox_.Have(entry.digest, {block, 1});
    return absl::OkStatus();
  }
  log::warn("cache: block {} of {} is damaged and fetched again{}", block, entry.digest.text(),
            good.ok() ? "" : ": " + Describe(good.status()));
  ++counters_.mended;
  entry.plan.Lost(block);
  const absl::Time now = absl::Now();
  entry.plan.WaitFor(job.range, now, now + options_.read_timeout);
  return good.status();
}

absl::Status Fetcher::RunRange(Job& job, MutableByteSpan buffer) {
  const ReadLimits limits = LimitsOf(job.entry, absl::Now() + options_.read_timeout);
  const FetchBytes fetch = BytesFrom(*job.source, limits);
  RETURN_IF_ERROR(job.blob->Prepare(job.range, fetch));
  uint64_t block = job.range.first;
  size_t filled = 0;
  const Sink sink = [&](ByteSpan bytes) -> absl::Status {
    {
      absl::MutexLock lock(&mu_);
      counters_.bytes_fetched += bytes.size();
    }
    while (!bytes.empty()) {
      if (!job.range.Holds(block)) return DataLoss("more bytes came than were asked for");
      const size_t length = job.blob->LengthOf(block);
      const size_t n = std::min(length - filled, bytes.size());
      std::memcpy(buffer.data() + filled, bytes.data(), n);
      bytes = bytes.subspan(n);
      filled += n;
      if (filled < length) break;
      RETURN_IF_ERROR(job.blob->Put(block, buffer.first(length), fetch));
      RETURN_IF_ERROR(Complete(job, block, length));
      ++block;
      filled = 0;
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(job.source->Read(job.blob->OffsetOf(job.range.first),
                                   job.blob->BytesOf(job.range), sink, limits));
  if (block != job.range.end()) return DataLoss("fewer bytes came than were asked for");
  return absl::OkStatus();
}

absl::Status Fetcher::Complete(Job& job, uint64_t block, uint64_t length) {
  absl::MutexLock lock(&mu_);
  Entry& entry = *job.entry;
  ++counters_.blocks_fetched;
  entry.refusals = 0;
  if (entry.unstored == 0) entry.unstored_since = absl::Now();
  entry.unstored += length;
  SetBytes(entry, entry.bytes + length);
  job.left -= length;
  coming_ -= length;
  entry.plan.Arrived(block);
  if (entry.suspects.erase(block) > 0)
    outbox_.Tell({entry.digest, control::FetchChecked{block, job.blob->file()}});
  outbox_.Have(entry.digest, {block, 1});
  return absl::OkStatus();
}

void Fetcher::Finish(const Job& job, const absl::Status& status) {
  const bool no_space = absl::IsResourceExhausted(status) && folder_.FreeBytes() < kLittleSpace;
  absl::MutexLock lock(&mu_);
  Entry& entry = *job.entry;
  --entry.users;
  --entry.jobs;
  --running_;
  filling_ -= job.need == Need::kFill;
  buffers_ -= job.blob->block_size();
  coming_ -= job.left;
  if (!job.check) entry.plan.Landed(job.range);
  if (status.ok()) {
    entry.broken = entry.last_error = absl::OkStatus();
    entry.delay = entry.later = absl::ZeroDuration();
  } else if (!absl::IsCancelled(status)) {
    // Room that came while the job ran, or will, is a reason to try again.
    const bool room = counters_.evicted_bytes > job.evicted || RoomWillCome();
    disk_full_ = disk_full_ || no_space;
    NoteFailure(entry, job.need, status, MayPass(status) || (no_space && room));
  }
  work_.SignalAll();
  keep_.SignalAll();
}

void Fetcher::NoteFailure(Entry& entry, Need need, const absl::Status& status, bool may_pass) {
  const absl::Time now = absl::Now();
  ++counters_.retries;
  entry.last_error = status;
  if (entry.later_at <= now) {
    entry.later = std::clamp(entry.later * 2, kBrokenPause, kMaxLater);
    entry.later_at = now + entry.later;
  }
  if (absl::IsDataLoss(status)) {
    ++counters_.blocks_refused;
    ++entry.refusals;
  }
  if (may_pass && entry.refusals < kMaxRefusals) {
    if (entry.retry_at > now) return;  // another range failed with this one
    log::debug("fetch of {}: {}", entry.digest.text(), Describe(status));
    entry.delay = std::clamp(entry.delay * 2, kFirstPause, kMaxPause);
    entry.retry_at = now + entry.delay;
    return;
  }
  entry.refusals = 0;
  log::warn("fetch of {}: {}", entry.digest.text(), Describe(status));
  if (need != Need::kWanted && entry.plan.waiting() == 0) return;
  entry.broken = status;
  entry.retry_at = now + kBrokenPause;
  FailWaits(entry, status);
}

void Fetcher::FailWaits(Entry& entry, const absl::Status& why) {
  ++entry.failed_runs;
  Tell(entry, entry.plan.Abandon(), why);
  std::vector<Range> suspects = RangesOf(entry.suspects, control::kMaxFetchBlocks);
  entry.suspects.clear();
  entry.unchecked.clear();
  Tell(entry, suspects, why);
}

void Fetcher::Tell(Entry& entry, const std::vector<Range>& failed, const absl::Status& why) {
  for (const Range& range : failed) {
    counters_.failures += range.count;
    outbox_.Tell(
        {entry.digest, control::FetchFailed{range.first, static_cast<uint32_t>(range.count), why}});
  }
}

ReadLimits Fetcher::LimitsOf(const EntryPtr& entry, absl::Time deadline) const {
  return {deadline, [this, entry] {
            absl::MutexLock lock(&mu_);
            return stopping_ || entry->state == State::kClosed;
          }};
}

FetchBytes Fetcher::BytesFrom(RangeSource& source, ReadLimits limits) {
  return [this, &source, limits](uint64_t offset, MutableByteSpan out) -> absl::Status {
    size_t filled = 0;
    const Sink sink = [&](ByteSpan bytes) -> absl::Status {
      if (bytes.size() > out.size() - filled)
        return DataLoss("more bytes came than were asked for");
      std::memcpy(out.data() + filled, bytes.data(), bytes.size());
      filled += bytes.size();
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(source.Read(offset, out.size(), sink, limits));
    if (filled < out.size()) return DataLoss("fewer bytes came than were asked for");
    absl::MutexLock lock(&mu_);
    counters_.bytes_fetched += filled;
    return absl::OkStatus();
  };
}

}  // namespace kapsule::fetch
