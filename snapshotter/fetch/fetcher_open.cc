// Opening blobs.
#include <absl/time/clock.h>

#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "snapshotter/fetch/failures.h"
#include "snapshotter/fetch/fetcher.h"

namespace kapsule::fetch {
namespace {

constexpr uint64_t kFirstWindow = 4 << 20, kMaxWindow = 64 << 20;
constexpr absl::Duration kFirstPause = absl::Milliseconds(200), kMaxPause = absl::Seconds(5);

StreamGuess GuessFor(const CachedBlob& blob, uint64_t cache_bytes) {
  const auto blocks = [&](uint64_t bytes) {
    return std::max<uint64_t>(1, std::min(bytes, cache_bytes / 8) / blob.block_size());
  };
  return StreamGuess(blocks(kFirstWindow), blocks(kMaxWindow));
}

}  // namespace

absl::StatusOr<UniqueFd> Fetcher::Open(const BlobName& name, const Origin& origin,
                                       absl::Time deadline) {
  ASSIGN_OR_RETURN(const std::shared_ptr<RangeSource> source, sources_(origin));
  ASSIGN_OR_RETURN(const EntryPtr entry, BeginOpen(name, source, deadline));
  absl::StatusOr<UniqueFd> file = Cancelled("");
  try {
    file = Prepare(entry, name, *source, deadline);
  } catch (...) {  // others wait for the end of this opening
    EndOpen(entry, false);
    throw;
  }
  EndOpen(entry, file.ok());
  return file;
}

absl::StatusOr<UniqueFd> Fetcher::Prepare(const EntryPtr& entry, const BlobName& name,
                                          RangeSource& source, absl::Time deadline) {
  RETURN_IF_ERROR(Load(entry, name, source, deadline));
  RETURN_IF_ERROR(WaitForToc(entry, deadline));
  std::shared_ptr<CachedBlob> blob;
  {
    absl::MutexLock lock(&mu_);
    blob = entry->blob;
  }
  return blob->OpenForReader();
}

absl::StatusOr<Fetcher::EntryPtr> Fetcher::BeginOpen(const BlobName& name,
                                                     std::shared_ptr<RangeSource> source,
                                                     absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  const auto free = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const EntryPtr entry = Find(name.digest);
    if (entry == nullptr || stopping_) return true;
    if (entry->state == State::kOpening || entry->state == State::kRemoving) return false;
    // What runs for another index of a closed blob must have ended.
    return entry->state == State::kOpen || entry->users == 0;
  };
  // Late, it would stay open: who asked for it has closed it meanwhile.
  if (!mu_.AwaitWithDeadline(absl::Condition(&free), deadline) || absl::Now() >= deadline)
    return DeadlineExceeded("the blob is still being opened or removed");
  if (stopping_) return Cancelled("kapsule-fetch ends");
  const EntryPtr entry = FindOrMake(name.digest);
  const bool same = entry->blob == nullptr || (entry->blob->name().size == name.size &&
                                               entry->blob->name().index == name.index);
  if (!same && entry->state == State::kOpen)
    return FailedPrecondition("the blob is open with another size or index");
  if (!same) {
    entry->blob = nullptr;
    entry->to_punch.clear();  // blocks of the other index
  }
  if (entry->source != nullptr) counters_.auth_refreshes += entry->source->auth_refreshes();
  entry->source = std::move(source);
  entry->forgotten = entry->closing = false;
  entry->broken = entry->last_error = absl::OkStatus();
  entry->retry_at = entry->later_at = absl::InfinitePast();
  entry->on_disk = true;
  ++entry->users;
  if (entry->state != State::kOpen) entry->state = State::kOpening;
  return entry;
}

absl::Status Fetcher::Load(const EntryPtr& entry, const BlobName& name, RangeSource& source,
                           absl::Time deadline) {
  {
    absl::MutexLock lock(&mu_);
    if (entry->blob != nullptr) return absl::OkStatus();
  }
  const FetchBytes fetch = BytesFrom(source, LimitsOf(entry, deadline));
  absl::Duration pause = kFirstPause;
  absl::StatusOr<CachedBlob::Loaded> loaded = CachedBlob::Load(folder_, name, pages_, fetch);
  while (!loaded.ok() && MayPass(loaded.status()) && absl::Now() + pause < deadline) {
    if (PauseOrStop(pause)) return Cancelled("kapsule-fetch ends");
    pause = std::min(pause * 2, kMaxPause);
    loaded = CachedBlob::Load(folder_, name, pages_, fetch);
  }
  if (!loaded.ok()) return loaded.status();
  folder_.Touch(name.digest);

  absl::MutexLock lock(&mu_);
  entry->blob = std::move(loaded->blob);
  SetBytes(*entry, entry->blob->BytesOnDisk());
  const auto beyond =
      entry->plan.Begin(std::move(loaded->there), GuessFor(*entry->blob, options_.cache_bytes));
  Tell(*entry, beyond, absl::OutOfRangeError("the blob has no such block"));
  return absl::OkStatus();
}

bool Fetcher::PauseOrStop(absl::Duration pause) const {
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&stopping_), pause);
}

// Where it is open, kapsule-fuse waits for it itself: its file must not wait for a registry.
absl::Status Fetcher::WaitForToc(const EntryPtr& entry, absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  if (entry->state == State::kOpen) return absl::OkStatus();
  const Range toc = entry->blob->toc_blocks();
  if (toc.count == 0 || entry->plan.HasAll(toc)) return absl::OkStatus();
  entry->plan.WaitFor(toc, absl::Now(), deadline);
  work_.SignalAll();
  const uint64_t failed_runs = entry->failed_runs;
  const auto decided = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return entry->plan.HasAll(toc) || entry->failed_runs != failed_runs || stopping_;
  };
  mu_.AwaitWithDeadline(absl::Condition(&decided), deadline);
  if (entry->plan.HasAll(toc)) return absl::OkStatus();
  if (entry->failed_runs != failed_runs && !entry->last_error.ok())
    return Annotate(entry->last_error, "fetch the TOC");
  return DeadlineExceeded("the TOC did not come in time: {}",
                          entry->last_error.ok() ? "no answer" : Describe(entry->last_error));
}

void Fetcher::EndOpen(const EntryPtr& entry, bool ok) {
  absl::MutexLock lock(&mu_);
  --entry->users;
  entry->used = absl::Now();
  ok = ok && !entry->closing;
  if (entry->state == State::kOpening) entry->state = ok ? State::kOpen : State::kClosed;
  // Reads may have waited for what was there all the time.
  if (ok) {
    entry->from_before = false;
    outbox_.Have(entry->digest, {0, entry->blob->blocks()});
  }
  work_.SignalAll();
  keep_.SignalAll();
}

}  // namespace kapsule::fetch
