// The views that kapsule-fuse serves: who is in the directory, who has what open.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <functional>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "snapshotter/fuse/request_memory.h"
#include "snapshotter/fuse/served_view.h"

namespace kapsule::fuse {

// Bytes of metadata that all views of the process may have together.
inline constexpr uint64_t kMaxViewMetadata = 1 << 30;

// What is listed and how often it is open stands in the memory of requests, so
// that a successor goes on with it. Thread-safe; no method does I/O.
class ViewTable {
 public:
  // `memory` outlives it and has been taken over before Restore().
  explicit ViewTable(RequestMemory& memory, uint64_t max_metadata = kMaxViewMetadata)
      : memory_(memory), max_metadata_(max_metadata) {}

  // `forgotten` is called with the name of each view that is known no more, by
  // the thread that saw to it, without a lock. Before any thread uses this.
  void OnForgotten(std::function<void(const std::string&)> forgotten) {
    forgotten_ = std::move(forgotten);
  }

  // Names of the views that a predecessor has left in the directory or open.
  // Forgets those that are neither.
  std::vector<std::string> Remembered() ABSL_LOCKS_EXCLUDED(mu_);
  // Takes these up again, at most one for each name; views that are not
  // remembered are left out. What is remembered and not among them is lost:
  // logged and forgotten. Returns how many are known now.
  size_t Restore(const std::vector<ViewPtr>& views) ABSL_LOCKS_EXCLUDED(mu_);

  // An opening on its way; Withdraw() of the same name cancels it.
  class Opening {
   public:
    Opening(ViewTable& table, std::string name);
    Opening(const Opening&) = delete;
    Opening& operator=(const Opening&) = delete;
    ~Opening();
    const std::string& name() const { return name_; }

   private:
    friend class ViewTable;
    ViewTable& table_;
    const std::string name_;
    bool withdrawn_ = false;  // guarded by table_.mu_
    std::list<Opening*>::iterator position_;
  };

  // The FUSE node of a name, the same in every process. 0: not 64 hex digits, or
  // one of the few digests without a node.
  static uint64_t NodeOf(std::string_view name);

  // Puts a view into the directory, again where it is `Known()`.
  //   Cancelled          withdrawn meanwhile
  //   AlreadyExists      another view of this name is known
  //   ResourceExhausted  the known views leave no room for it
  //   Internal           its node belongs to another name
  absl::Status Publish(const Opening& opening, ViewPtr view) ABSL_LOCKS_EXCLUDED(mu_);
  // Takes it out of the directory. It lives until its last handle is released.
  void Withdraw(std::string_view name) ABSL_LOCKS_EXCLUDED(mu_);

  // In the directory, or withdrawn and still open somewhere; else null.
  ViewPtr Known(std::string_view name) const ABSL_LOCKS_EXCLUDED(mu_);
  ViewPtr Listed(std::string_view name) const ABSL_LOCKS_EXCLUDED(mu_);  // in the directory
  ViewPtr OfNode(uint64_t node) const ABSL_LOCKS_EXCLUDED(mu_);          // known

  // Handles of a view are counted, by the request in `slot`, and have one number,
  // by which they are told from those of an earlier view of the same node: that
  // of a view which was lost. nullopt where the node is not in the directory.
  std::optional<uint64_t> OpenHandle(uint64_t node, const RequestSlot& slot)
      ABSL_LOCKS_EXCLUDED(mu_);
  void ReleaseHandle(uint64_t node, uint64_t handle, const RequestSlot& slot)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Null where the handle is not open.
  ViewPtr OfHandle(uint64_t node, uint64_t handle) const ABSL_LOCKS_EXCLUDED(mu_);

  // Names in the directory by node, beginning after node `after`; at most `limit`.
  std::vector<ViewPtr> List(uint64_t after, size_t limit) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    ViewPtr view;
    uint32_t index = 0;            // of `shared` in the memory
    SharedView* shared = nullptr;  // written under mu_ only
    bool listed() const { return shared->listed.load() != 0; }
    uint64_t handles() const { return shared->handles.load(); }
    uint64_t handle() const { return FileHandleOf(*shared, index); }
  };
  using Entries = std::map<uint64_t, Entry>;
  const Entry* Find(std::string_view name) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Add(uint64_t node, ViewPtr view) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  ViewPtr Erase(Entries::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool TakeUp(uint32_t index, ViewPtr view) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Forget(ViewPtr last) const ABSL_LOCKS_EXCLUDED(mu_);

  RequestMemory& memory_;
  const uint64_t max_metadata_;
  std::function<void(const std::string&)> forgotten_;

  mutable absl::Mutex mu_;
  Entries entries_ ABSL_GUARDED_BY(mu_);
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mu_);  // places in the memory
  uint64_t metadata_ ABSL_GUARDED_BY(mu_) = 0;       // bytes, of all entries
  std::list<Opening*> openings_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::fuse
