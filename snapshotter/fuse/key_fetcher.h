// Keys of views that a predecessor had open.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <memory>

#include "snapshotter/fuse/layer_opener.h"
#include "snapshotter/fuse/task_pool.h"

namespace kapsule::fuse {

// What the holder has of a view beside its image.
struct HeldLayer {
  UniqueFd record, blob;
};

// Thread-safe.
class KeyFetcher {
 public:
  // All outlive it. Views wait for their key for `grace` at most, which a timer in
  // `chores` ends; then their reads fail until it comes.
  KeyFetcher(const LayerOpener& opener, TaskPool& keyed, TaskPool& plain, TaskPool& chores,
             absl::Duration grace)
      : opener_(opener), keyed_(keyed), plain_(plain), chores_(chores), grace_(grace) {}

  // Gets the layer of `view` in the background, again and again as long as
  // somebody has the view. Where the keyprovider says no, reads fail at once, and
  // it is asked less often.
  void Fetch(const ViewPtr& view, std::shared_ptr<const HeldLayer> held);

 private:
  struct Errand {
    std::weak_ptr<const ServedView> view;
    std::shared_ptr<const HeldLayer> held;
    absl::Duration back_off;
    absl::Mutex mu;
    absl::Status last ABSL_GUARDED_BY(mu);  // how the last attempt ended
  };
  static void EndGrace(Errand& errand);
  void Add(TaskPool& pool, absl::Time time, std::shared_ptr<Errand> errand);
  void Try(TaskPool& pool, std::shared_ptr<Errand> errand);

  const LayerOpener& opener_;
  TaskPool& keyed_;
  TaskPool& plain_;
  TaskPool& chores_;
  const absl::Duration grace_;
};

}  // namespace kapsule::fuse
