// What kapsule-fuse is to be told, until its socket has room.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <deque>
#include <optional>
#include <set>

#include "core/control/fetch_wire.h"
#include "snapshotter/fetch/block_set.h"

namespace kapsule::fetch {

// Thread-safe; nobody but the thread in Next() waits. Without a connection all of
// it is for nobody.
class Outbox {
 public:
  struct Item {
    control::FetchPacket packet;
    bool look = false;  // a Have whose bits are to be looked up when it is sent
  };

  // A new connection, in place of the one before: its number.
  uint64_t Connect() ABSL_LOCKS_EXCLUDED(mu_);
  void Disconnect(uint64_t connection) ABSL_LOCKS_EXCLUDED(mu_);
  bool connected() const ABSL_LOCKS_EXCLUDED(mu_);

  // Blocks of these may have come; told once however often this is called before.
  void Have(const oci::Digest& blob, Range blocks) ABSL_LOCKS_EXCLUDED(mu_);
  void Tell(control::FetchPacket packet) ABSL_LOCKS_EXCLUDED(mu_);

  // Waits for something to tell. Null when `connection` is not the current one.
  std::optional<Item> Next(uint64_t connection) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  mutable absl::Mutex mu_;
  uint64_t last_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t current_ ABSL_GUARDED_BY(mu_) = 0;  // 0: none
  std::deque<Item> items_ ABSL_GUARDED_BY(mu_);
  std::set<std::pair<oci::Digest, uint64_t>> windows_ ABSL_GUARDED_BY(mu_);  // in items_
};

}  // namespace kapsule::fetch
