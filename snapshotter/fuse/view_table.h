// The views that kapsule-fuse serves: who is in the directory, who has what open.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/oci/digest.h"
#include "core/view/view.h"

namespace kapsule::fuse {

// One open layer as a file. Thread-safe.
class ServedView {
 public:
  ServedView(const oci::Digest& digest, std::unique_ptr<view::View> view)
      : digest_(digest), name_(digest.hex()), view_(std::move(view)) {}

  const oci::Digest& digest() const { return digest_; }
  const std::string& name() const { return name_; }  // 64 hex digits
  uint64_t size() const { return view_->size(); }
  uint64_t metadata_bytes() const { return view_->metadata().bytes.size(); }
  const blob::LayerReader& layer() const { return view_->layer(); }

  // As View::Read(). Each failure is logged, once for every text: that names the
  // chunk. After kMaxLogged of them the layer is only counted as bad.
  absl::Status Read(uint64_t offset, MutableByteSpan out) const;
  static constexpr size_t kMaxLogged = 64;

 private:
  void LogFailure(uint64_t offset, const absl::Status& error) const;

  const oci::Digest digest_;
  const std::string name_;
  const std::unique_ptr<view::View> view_;

  mutable absl::Mutex mu_;
  mutable std::set<std::string> logged_ ABSL_GUARDED_BY(mu_);
};
using ViewPtr = std::shared_ptr<const ServedView>;

// Bytes of metadata that all views of the process may have together.
inline constexpr uint64_t kMaxViewMetadata = 1 << 30;

// Thread-safe; no method does I/O.
class ViewTable {
 public:
  explicit ViewTable(uint64_t max_metadata = kMaxViewMetadata) : max_metadata_(max_metadata) {}

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
  //   ResourceExhausted  the known views' metadata leaves no room for it
  //   Internal           its node belongs to another name
  absl::Status Publish(const Opening& opening, ViewPtr view);
  // Takes it out of the directory. It lives until its last handle is released.
  void Withdraw(std::string_view name);

  // In the directory, or withdrawn and still open somewhere; else null.
  ViewPtr Known(std::string_view name) const;
  ViewPtr Listed(std::string_view name) const;  // in the directory
  ViewPtr OfNode(uint64_t node) const;          // known
  ViewPtr OfHandle(uint64_t node) const;        // open at least once

  // A handle is the node, counted. False where the node is not in the directory.
  bool OpenHandle(uint64_t node);
  void ReleaseHandle(uint64_t node);

  // Names in the directory by node, beginning after node `after`; at most `limit`.
  std::vector<ViewPtr> List(uint64_t after, size_t limit) const;

 private:
  struct Entry {
    ViewPtr view;
    uint64_t handles = 0;
    bool listed = false;
  };
  using Entries = std::map<uint64_t, Entry>;
  const Entry* Find(std::string_view name) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Add(uint64_t node, ViewPtr view) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  ViewPtr Erase(Entries::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint64_t max_metadata_;

  mutable absl::Mutex mu_;
  Entries entries_ ABSL_GUARDED_BY(mu_);
  uint64_t metadata_ ABSL_GUARDED_BY(mu_) = 0;  // bytes, of all entries
  std::list<Opening*> openings_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::fuse
