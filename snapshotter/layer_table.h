// The Kapsule layers of this node and how far each has come: no I/O here.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "snapshotter/model_layers.h"

namespace kapsule::snapshotter {

// How a layer was opened.
struct Opened {
  std::string image;  // for messages
  bool encrypted = false;
  oci::Annotations annotations;           // that unwrapped to its key
  uint64_t number = 0;                    // of this opening; LayerTable::Commit() counts
  std::vector<std::string> sources = {};  // images that have the blob (blob_sources.h)
};

// Whether an error may go away by itself, so that opening is tried again. A
// limit that a layer exceeds (ResourceExhausted) does not.
bool IsTransient(const absl::Status& status);

// "layer 1 (sha256:…)", counted from the bottom.
std::string LayerTitle(const ModelLayer& layer);

// Thread-safe. Workers take one item of work at a time and end each by Commit(),
// Fail(), Checked() or Closed(). Items of one digest never run together, since snapshots
// that hold the same blob share one view. A transient failure is tried again
// after a pause that doubles; another one only when somebody awaits the layer.
// Layers that are awaited come first, then those that have been due for longest;
// checks of mounted layers come last and one at a time.
class LayerTable {
 public:
  static constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
  static constexpr absl::Duration kLongestPause = absl::Seconds(30);
  static constexpr absl::Duration kAwaitedPause = absl::Seconds(1);
  static constexpr absl::Duration kLongestMount = absl::Seconds(2);
  static constexpr absl::Duration kClosePause = absl::Seconds(1);

  struct Work {
    uint64_t generation = 0;
    oci::Digest digest;
    // To open; without it: no snapshot has the digest any more, close it.
    std::optional<ModelLayer> layer;
    std::shared_ptr<const Opened> last;  // how it was opened before; may be null
    uint64_t succession = 0;             // of the data plane, when this was taken
    bool check = false;                  // mounted, as `last` says: is its view still open?
  };

  // Whether the metadata has a snapshot of this id; may read the disk. Asked of each layer
  // that is added, since it may have been removed between its look-up and this.
  using IsRecorded = std::function<bool(int64_t id)>;

  // Null: all are. A record is removed before Remove() is called.
  explicit LayerTable(IsRecorded is_recorded = nullptr) : is_recorded_(std::move(is_recorded)) {}

  // Nothing happens where the layer is known, or has no record any more.
  void Add(const ModelLayer& layer) ABSL_LOCKS_EXCLUDED(mu_);

  // Waits for work; nullopt after Stop().
  std::optional<Work> Take() ABSL_LOCKS_EXCLUDED(mu_);

  // Before mount(2). False where the layer is no longer wanted or the data plane
  // has died since: then Fail().
  bool BeginMount(const Work& work) ABSL_LOCKS_EXCLUDED(mu_);
  // After mount(2). False as above: then unmount and Fail().
  bool Commit(const Work& work, Opened opened) ABSL_LOCKS_EXCLUDED(mu_);
  void Fail(const Work& work, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  // After a check: OK, and a failure that does not pass, say that the view is open.
  void Checked(const Work& work, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  // After a check: the view is not open. From now on nobody finds the layer mounted;
  // then unmount, where this is true, and Fail().
  bool Lost(const Work& work) ABSL_LOCKS_EXCLUDED(mu_);
  // After a failure that may pass it is to be closed again, kClosePause later.
  void Closed(const Work& work, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);

  // Forgets a layer; afterwards nothing mounts it. Waits while it is being
  // mounted, at most kLongestMount. The caller unmounts it.
  void Remove(int64_t id) ABSL_LOCKS_EXCLUDED(mu_);

  // A view is open: it is closed, unless a layer that is known needs it.
  void CloseUnneeded(const oci::Digest& digest) ABSL_LOCKS_EXCLUDED(mu_);

  // The data plane has died: every layer is to be opened again. Returns the ids
  // of those that were mounted, for the caller to unmount.
  std::vector<int64_t> Reset() ABSL_LOCKS_EXCLUDED(mu_);
  // Another process serves: what is mounted is to be checked.
  void Succeeded() ABSL_LOCKS_EXCLUDED(mu_);
  // Ends every pause.
  void Hurry() ABSL_LOCKS_EXCLUDED(mu_);

  struct Ready {
    uint64_t generation = 0;
    std::vector<std::shared_ptr<const Opened>> opened;  // one for each layer
  };
  // Waits until all of `chain` are mounted; layers that are not known are added.
  //   Unavailable  not by `deadline`
  //   others       a layer cannot be opened
  absl::StatusOr<Ready> Await(const std::vector<ModelLayer>& chain, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);

  // How many layers are "mounted", "opening", "waiting" for another attempt, or have
  // "failed" until somebody awaits them; each is there.
  std::map<std::string, size_t> States() const ABSL_LOCKS_EXCLUDED(mu_);

  // The digest of every layer, by its id.
  std::map<int64_t, oci::Digest> Digests() const ABSL_LOCKS_EXCLUDED(mu_);

  // How often the data plane has died.
  uint64_t generation() const ABSL_LOCKS_EXCLUDED(mu_);

  // Ends all waiting. Returns the ids of mounted layers.
  std::vector<int64_t> Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    ModelLayer layer;
    bool recorded = false;  // until then nobody works at it
    bool mounted = false;
    bool mounting = false;
    bool busy = false;  // a worker is at it
    std::shared_ptr<const Opened> opened;
    uint64_t succession = 0;  // in which its view was open
    // While not mounted, or not checked: the last attempt and when the next is due.
    absl::Status status;
    absl::Time tried = absl::InfinitePast();
    absl::Time due = absl::InfinitePast();
    absl::Duration pause = kFirstPause;
    absl::Time awaited_until = absl::InfinitePast();  // the latest deadline

    bool failed() const { return !mounted && !busy && due == absl::InfiniteFuture(); }
  };

  void Erase(int64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Entry* Find(int64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Entry* EntryOf(const Work& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Work> NextWork(absl::Time now, absl::Time* next) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Work> NextClose(absl::Time now, absl::Time* next)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsSettled(const Entry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool InUse(const oci::Digest& digest) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<int64_t> Mounted() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const IsRecorded is_recorded_;
  mutable absl::Mutex mu_;  // this class does nothing slow
  absl::CondVar changed_;   // anything below
  std::map<int64_t, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::map<oci::Digest, absl::Time> closing_ ABSL_GUARDED_BY(mu_);  // and when
  std::set<oci::Digest> busy_ ABSL_GUARDED_BY(mu_);
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t openings_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t successions_ ABSL_GUARDED_BY(mu_) = 0;
  bool checking_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace kapsule::snapshotter
