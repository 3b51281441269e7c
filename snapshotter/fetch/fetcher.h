// All blobs of the cache and the threads that fetch them.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <bitset>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "core/control/fetch_wire.h"
#include "snapshotter/fetch/blob_plan.h"
#include "snapshotter/fetch/cached_blob.h"
#include "snapshotter/fetch/outbox.h"
#include "snapshotter/fetch/range_source.h"

namespace kapsule::fetch {

enum class Fill {
  kOff,
  kIdle,   // when nothing was wanted for a while
  kEager,  // always, with half of the connections
};

struct FetcherOptions {
  uint64_t cache_bytes = uint64_t{64} << 30;
  absl::Duration read_timeout = absl::Seconds(60);
  Fill fill = Fill::kIdle;
  unsigned connections = 8;  // threads that fetch
  // How long what was there at the start stays: it may be mounted, and be opened
  // again only now. At most half of `read_timeout`: reads that wait for room get it.
  absl::Duration start_grace = absl::Seconds(60);
};

struct FetcherCounters {
  uint64_t bytes_fetched = 0, blocks_fetched = 0, blocks_refused = 0;
  uint64_t wanted_there = 0, wanted_fetched = 0, failures = 0, retries = 0;
  uint64_t suspects = 0, mended = 0, evicted_bytes = 0, auth_refreshes = 0;
  uint64_t cache_bytes = 0, cached_blobs = 0, open_blobs = 0, waiting_blocks = 0;
};

// Thread-safe. One lock guards what is known about all blobs; it is never held
// over I/O. What kapsule-fuse is told goes to the outbox.
class Fetcher {
 public:
  // `folder` and `outbox` outlive it.
  Fetcher(const CacheFolder& folder, FetcherOptions options, SourceFactory sources, Outbox& outbox);
  // Stop(), then waits for ranges on their way.
  ~Fetcher();
  absl::Status Start();

  // Returns when header and TOC of the blob are in the file: a descriptor of it,
  // read-only.
  //   FailedPrecondition  it is open with another size or index
  //   DeadlineExceeded    not by `deadline`; says what went wrong
  //   others              as the source and CachedBlob::Load()
  absl::StatusOr<UniqueFd> Open(const BlobName& name, const Origin& origin, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);
  void Close(const oci::Digest& blob) ABSL_LOCKS_EXCLUDED(mu_);
  void Forget(const oci::Digest& blob) ABSL_LOCKS_EXCLUDED(mu_);

  // From kapsule-fuse; any numbers.
  void Want(const oci::Digest& blob, Range blocks) ABSL_LOCKS_EXCLUDED(mu_);
  void Suspect(const oci::Digest& blob, uint64_t block) ABSL_LOCKS_EXCLUDED(mu_);
  void Dropped(const oci::Digest& blob, Range blocks, uint64_t question) ABSL_LOCKS_EXCLUDED(mu_);
  // It will be another kapsule-fuse, or another connection to it: what is going is
  // asked for anew.
  void NewConnection() ABSL_LOCKS_EXCLUDED(mu_);
  // Which blocks from `first` on can be read.
  control::FetchHave Look(const oci::Digest& blob, uint64_t first) const ABSL_LOCKS_EXCLUDED(mu_);

  FetcherCounters counters() const ABSL_LOCKS_EXCLUDED(mu_);
  // Nothing more is fetched, and what was stays. What waits for a registry may go on
  // for a while: it changes nothing that is stored.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  enum class State { kClosed, kOpening, kOpen, kRemoving };

  // Guarded by mu_, but for what the shared objects guard themselves.
  struct Entry {
    explicit Entry(const oci::Digest& digest) : digest(digest) {}
    const oci::Digest digest;
    State state = State::kClosed;
    bool forgotten = false;
    bool closing = false;  // closed while it was being opened
    bool on_disk = false;
    bool from_before = false;          // on the disk at the start, and not opened since
    std::shared_ptr<CachedBlob> blob;  // null: not loaded
    std::shared_ptr<RangeSource> source;
    BlobPlan plan;
    unsigned users = 0;  // threads that use the file
    unsigned jobs = 0;   // of these, that fetch
    uint64_t bytes = 0;  // that it takes on the disk
    absl::Time used = absl::InfinitePast();

    std::set<uint64_t> suspects;     // that kapsule-fuse waits to hear about
    std::deque<uint64_t> unchecked;  // of these
    std::vector<Range> to_punch;     // let go of
    absl::Time asked_at;             // to let go, the last time
    uint64_t unstored = 0;           // bytes that came since the list was stored
    absl::Time unstored_since, store_at = absl::InfinitePast();

    // After failures: wants wait until retry_at, or fail with `broken` until then.
    absl::Time retry_at = absl::InfinitePast(), later_at = absl::InfinitePast();
    absl::Duration delay, later;
    absl::Status broken, last_error;
    absl::Time warned_at = absl::InfinitePast();  // that reads waited in vain
    int refusals = 0;                             // blocks in a row that came with another digest
    uint64_t failed_runs = 0;                     // how often all waits failed
  };
  using EntryPtr = std::shared_ptr<Entry>;

  struct Job {
    EntryPtr entry;
    bool check = false;  // of the one block, in the file
    Need need = Need::kWanted;
    Range range;
    std::shared_ptr<CachedBlob> blob = nullptr;  // the entry's, when the job began
    std::shared_ptr<RangeSource> source = nullptr;
    uint64_t left = 0;     // bytes to come
    uint64_t evicted = 0;  // of the counters, when the job began
  };

  // fetcher_open.cc
  absl::StatusOr<EntryPtr> BeginOpen(const BlobName& name, std::shared_ptr<RangeSource> source,
                                     absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<UniqueFd> Prepare(const EntryPtr& entry, const BlobName& name, RangeSource& source,
                                   absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Load(const EntryPtr& entry, const BlobName& name, RangeSource& source,
                    absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status WaitForToc(const EntryPtr& entry, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  void EndOpen(const EntryPtr& entry, bool ok) ABSL_LOCKS_EXCLUDED(mu_);
  EntryPtr FindOrMake(const oci::Digest& blob) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  EntryPtr Find(const oci::Digest& blob) const ABSL_SHARED_LOCKS_REQUIRED(mu_);

  // fetcher_jobs.cc
  void Work() ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<Job> Take() ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<Job> Choose(absl::Time now, absl::Time* wake) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Job> ChooseCheck() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Job> ChooseRange(Need need, absl::Time now, absl::Time* wake)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MayRun(Need need, absl::Time now, absl::Time* wake) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint64_t MaxBlocks(const Entry& entry, Need need) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Job Begin(Job job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Run(Job& job) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status RunCheck(const Job& job, MutableByteSpan buffer) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status RunRange(Job& job, MutableByteSpan buffer) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Complete(Job& job, uint64_t block, uint64_t length) ABSL_LOCKS_EXCLUDED(mu_);
  void Finish(const Job& job, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void NoteFailure(Entry& entry, Need need, const absl::Status& status, bool may_pass)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FailWaits(Entry& entry, const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Tell(Entry& entry, const std::vector<Range>& failed, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  ReadLimits LimitsOf(const EntryPtr& entry, absl::Time deadline) const ABSL_LOCKS_EXCLUDED(mu_);
  FetchBytes BytesFrom(RangeSource& source, ReadLimits limits) ABSL_LOCKS_EXCLUDED(mu_);
  bool PauseOrStop(absl::Duration pause) const ABSL_LOCKS_EXCLUDED(mu_);

  // fetcher_space.cc
  bool HasRoom(uint64_t bytes, Need need) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint64_t Excess() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MayRemove(const Entry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  EntryPtr OldestClosed(bool forgotten_only) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool RoomWillCome() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // of what is closed
  void Watch() ABSL_LOCKS_EXCLUDED(mu_);
  void ExpireWaits(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TellInVain(Entry& entry, const std::vector<Range>& expired, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AskToLetGo(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AskForDrops(const Entry& entry, const std::vector<Range>& ranges)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Keep() ABSL_LOCKS_EXCLUDED(mu_);
  // The next chore that is due, without the lock; null where there is none.
  std::function<void()> NextChore(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StoreAll() ABSL_LOCKS_EXCLUDED(mu_);
  void Store(const EntryPtr& entry) ABSL_LOCKS_EXCLUDED(mu_);
  void Punch(const EntryPtr& entry) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(const EntryPtr& entry) ABSL_LOCKS_EXCLUDED(mu_);
  void SetBytes(Entry& entry, uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const CacheFolder& folder_;
  const FetcherOptions options_;
  const SourceFactory sources_;
  Outbox& outbox_;
  const std::shared_ptr<archive::PageCache> pages_;

  mutable absl::Mutex mu_;
  absl::CondVar work_, keep_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool keeping_ ABSL_GUARDED_BY(mu_) = false;  // a chore is done just now
  std::map<oci::Digest, EntryPtr> entries_ ABSL_GUARDED_BY(mu_);
  FetcherCounters counters_ ABSL_GUARDED_BY(mu_);
  uint64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;    // of all entries
  uint64_t coming_ ABSL_GUARDED_BY(mu_) = 0;   // of jobs that run
  uint64_t buffers_ ABSL_GUARDED_BY(mu_) = 0;  // memory of jobs that run
  unsigned running_ ABSL_GUARDED_BY(mu_) = 0, filling_ ABSL_GUARDED_BY(mu_) = 0;
  bool disk_full_ ABSL_GUARDED_BY(mu_) = false;
  // The last that was asked of kapsule-fuse; more than an earlier process got to.
  uint64_t questions_ ABSL_GUARDED_BY(mu_);
  absl::Time last_want_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Time grace_ends_ ABSL_GUARDED_BY(mu_);

  std::vector<std::thread> threads_;
};

}  // namespace kapsule::fetch
