// The views that the holder keeps for a successor.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <map>
#include <string>

#include "core/control/holder_wire.h"
#include "snapshotter/fuse/task_pool.h"
#include "snapshotter/fuse/view_table.h"

namespace kapsule::fuse {

// Of each view that `views` knows: its image, record and blob, from before
// it is published until after it is forgotten. A holder that is gone is said
// once in the log; then there is no failover. Thread-safe.
class HeldViews {
 public:
  // All outlive this. `chores` is a pool of one thread.
  HeldViews(const control::Holder& holder, const ViewTable& views, TaskPool& chores)
      : holder_(holder), views_(views), chores_(chores) {}

  // The right to change what is held of one view. Takes back what was put where
  // the view is not known at its end.
  class Claim {
   public:
    // Waits while another has it. Not from `chores`.
    Claim(HeldViews& held, std::string name);
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
    ~Claim() { held_.Release(name_); }

    void Put(int image, int record, int blob) const;
    // The record that was put. Unavailable: the holder does not give it.
    absl::StatusOr<UniqueFd> Record() const;

   private:
    HeldViews& held_;
    const std::string name_;
  };

  // The view is known no more. Never waits.
  void Forget(const std::string& name);

 private:
  enum class Recheck { kNo, kYes };
  bool TryClaim(const std::string& name) ABSL_LOCKS_EXCLUDED(mu_);
  // Drops the view until nothing more is to be looked at, and gives up the claim.
  void Release(const std::string& name) ABSL_LOCKS_EXCLUDED(mu_);
  void SayOnce(const absl::Status& error) ABSL_LOCKS_EXCLUDED(mu_);

  const control::Holder& holder_;
  const ViewTable& views_;
  TaskPool& chores_;

  absl::Mutex mu_;  // never held over a call of the holder
  std::map<std::string, Recheck> claims_ ABSL_GUARDED_BY(mu_);
  bool said_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace kapsule::fuse
