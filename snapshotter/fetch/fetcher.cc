#include "snapshotter/fetch/fetcher.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "core/base/log.h"

namespace kapsule::fetch {
namespace {

constexpr size_t kPageBytes = 16 << 20;              // of index pages in memory
constexpr uint64_t kMaxWaiting = uint64_t{1} << 16;  // blocks, of all blobs

}  // namespace

Fetcher::Fetcher(const CacheFolder& folder, FetcherOptions options, SourceFactory sources,
                 Outbox& outbox)
    : folder_(folder),
      options_(options),
      sources_(std::move(sources)),
      outbox_(outbox),
      pages_(std::make_shared<archive::PageCache>(kPageBytes)),
      questions_(
          static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count())) {}

Fetcher::~Fetcher() {
  Stop();
  for (std::thread& thread : threads_) thread.join();
}

void Fetcher::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    work_.SignalAll();
    keep_.SignalAll();
    const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !keeping_; };
    mu_.Await(absl::Condition(&idle));  // no list has two writers
  }
  StoreAll();
}

absl::Status Fetcher::Start() {
  ASSIGN_OR_RETURN(const std::vector<CacheFolder::Entry> found, folder_.Scan());
  {
    absl::MutexLock lock(&mu_);
    grace_ends_ = absl::Now() + std::min(options_.start_grace, options_.read_timeout / 2);
    for (const CacheFolder::Entry& blob : found) {
      const EntryPtr entry = FindOrMake(blob.blob);
      entry->on_disk = entry->from_before = true;
      entry->used = blob.used;
      SetBytes(*entry, blob.bytes);
    }
    log::info("cache: {} blobs, {} bytes of at most {}", found.size(), bytes_,
              options_.cache_bytes);
  }
  try {
    for (unsigned i = 0; i < options_.connections; ++i) threads_.emplace_back([this] { Work(); });
    threads_.emplace_back([this] { Watch(); });
    threads_.emplace_back([this] { Keep(); });
  } catch (const std::system_error& e) {
    return ResourceExhausted("start a thread: {}", e.what());
  }
  return absl::OkStatus();
}

Fetcher::EntryPtr Fetcher::Find(const oci::Digest& blob) const {
  const auto found = entries_.find(blob);
  return found == entries_.end() ? nullptr : found->second;
}

Fetcher::EntryPtr Fetcher::FindOrMake(const oci::Digest& blob) {
  if (EntryPtr entry = Find(blob)) return entry;
  return entries_.emplace(blob, std::make_shared<Entry>(blob)).first->second;
}

void Fetcher::Close(const oci::Digest& blob) {
  absl::MutexLock lock(&mu_);
  const EntryPtr entry = Find(blob);
  if (entry == nullptr) return;
  entry->closing = entry->state == State::kOpening;
  if (entry->state != State::kOpen) return;
  entry->state = State::kClosed;
  entry->used = absl::Now();
  FailWaits(*entry, Cancelled("the layer was closed"));
  entry->plan.Stay();
  keep_.SignalAll();
}

void Fetcher::Forget(const oci::Digest& blob) {
  absl::MutexLock lock(&mu_);
  const EntryPtr entry = Find(blob);
  if (entry == nullptr) return;
  entry->forgotten = true;
  keep_.SignalAll();
}

void Fetcher::Want(const oci::Digest& blob, Range blocks) {
  absl::MutexLock lock(&mu_);
  const absl::Time now = absl::Now();
  uint64_t waiting = 0;
  for (const auto& [digest, entry] : entries_) waiting += entry->plan.waiting();
  if (waiting + blocks.count > kMaxWaiting)
    return outbox_.Tell(
        {blob, control::FetchFailed{blocks.first, static_cast<uint32_t>(blocks.count),
                                    ResourceExhausted("{} reads wait already", waiting)}});
  const EntryPtr entry = FindOrMake(blob);
  if (entry->blob != nullptr && blocks.end() > entry->blob->blocks()) {
    const uint64_t first = std::max(blocks.first, entry->blob->blocks());
    Tell(*entry, {{first, blocks.end() - first}},
         absl::OutOfRangeError(fmt::format("the blob has {} blocks", entry->blob->blocks())));
    if (first == blocks.first) return;
    blocks.count = first - blocks.first;
  }
  const uint64_t there = entry->plan.Want(blocks, now, now + options_.read_timeout);
  counters_.wanted_there += there;
  counters_.wanted_fetched += blocks.count - there;
  if (there > 0) outbox_.Have(blob, blocks);
  entry->used = last_want_ = now;
  if (!entry->broken.ok() && now < entry->retry_at) FailWaits(*entry, entry->broken);
  work_.SignalAll();
}

void Fetcher::Suspect(const oci::Digest& blob, uint64_t block) {
  absl::MutexLock lock(&mu_);
  const EntryPtr entry = Find(blob);
  if (entry == nullptr || entry->state != State::kOpen || block >= entry->blob->blocks())
    return outbox_.Tell(
        {blob, control::FetchFailed{block, 1, absl::AbortedError("no such block is open")}});
  // It did not know yet that this one goes, and no more doubts it when it does.
  if (entry->plan.IsGoing(block)) return;
  if (!entry->suspects.insert(block).second) return;  // is being checked
  ++counters_.suspects;
  entry->unchecked.push_back(block);
  work_.SignalAll();
}

void Fetcher::Dropped(const oci::Digest& blob, Range blocks, uint64_t question) {
  absl::MutexLock lock(&mu_);
  const EntryPtr entry = Find(blob);
  if (entry == nullptr) return;
  const BlobPlan::LetGo let_go = entry->plan.Release(blocks, question);
  for (const Range& range : let_go.kept) outbox_.Have(blob, range);
  if (let_go.punch.empty()) return;
  entry->to_punch.insert(entry->to_punch.end(), let_go.punch.begin(), let_go.punch.end());
  keep_.SignalAll();
}

void Fetcher::NewConnection() {
  absl::MutexLock lock(&mu_);
  for (const auto& [digest, entry] : entries_) entry->asked_at = absl::InfinitePast();
}

control::FetchHave Fetcher::Look(const oci::Digest& blob, uint64_t first) const {
  absl::MutexLock lock(&mu_);
  control::FetchHave have{first, {}};
  const EntryPtr entry = Find(blob);
  if (entry == nullptr || entry->state != State::kOpen) return have;
  have.file = entry->blob->file();
  const BlockSet& there = entry->plan.there();
  const uint64_t end =
      std::min(there.size(), first + have.blocks.size());  // no overflow: kMaxFetchBlock
  for (uint64_t block = there.Next(true, first); block < end; block = there.Next(true, block + 1))
    have.blocks.set(block - first);
  return have;
}

FetcherCounters Fetcher::counters() const {
  absl::MutexLock lock(&mu_);
  FetcherCounters counters = counters_;
  counters.cache_bytes = bytes_;
  for (const auto& [digest, entry] : entries_) {
    counters.cached_blobs += entry->on_disk;
    counters.open_blobs += entry->state == State::kOpen;
    counters.waiting_blocks += entry->plan.waiting();
    if (entry->source != nullptr) counters.auth_refreshes += entry->source->auth_refreshes();
  }
  return counters;
}

}  // namespace kapsule::fetch
