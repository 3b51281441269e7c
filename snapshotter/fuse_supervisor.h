// Keeps one kapsule-fuse serving: watches it, and puts the next one in its place.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "snapshotter/data_plane.h"
#include "snapshotter/fuse_life.h"
#include "snapshotter/fuse_life_watch.h"

namespace kapsule::snapshotter {

// As DataPlane, whose words are used here. Thread-safe.
class FuseSupervisor {
 public:
  explicit FuseSupervisor(DataPlane::Options options);
  ~FuseSupervisor();

  absl::Status Start();  // once, first
  void Leave() ABSL_LOCKS_EXCLUDED(mu_);
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);
  const std::optional<std::vector<std::string>>& adopted() const { return adopted_; }

  // Waits while a successor takes over. What was asked of a process that died
  // meanwhile is asked of its successor, except Open: it may be what killed it.
  //   Unavailable       there is no kapsule-fuse, or it died
  //   DeadlineExceeded  no answer in time
  absl::StatusOr<v1::DataPlaneReply> Call(const v1::DataPlaneRequest& request,
                                          const std::vector<int>& fds, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);

  absl::Status UseFetcher(const UniqueFd& socket, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Upgrade() ABSL_LOCKS_EXCLUDED(mu_);
  DataPlaneStatus status() const ABSL_LOCKS_EXCLUDED(mu_);
  bool serving() const ABSL_LOCKS_EXCLUDED(mu_);
  bool failover() const ABSL_LOCKS_EXCLUDED(mu_);
  pid_t pid() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  enum class Event { kStop, kDeath, kStuck, kHolderEnded, kHolderChanged, kUpgrade, kSettled };
  // kServing: calls are answered. kReplacing: they wait. kAway: they fail.
  enum class State { kAway, kServing, kReplacing };
  // Between attempts that fail.
  static constexpr absl::Duration kMinPause = absl::Milliseconds(100), kMaxPause = absl::Seconds(5);

  // By Start(), then by the watcher.
  absl::Status Adopt();
  absl::Status GoOn(FuseConnection::Server server);
  absl::Status Connect();
  void SetConnection(const std::shared_ptr<FuseConnection>& connection) ABSL_LOCKS_EXCLUDED(mu_);
  // The first life of a connection, or the next one.
  absl::Status StartLife();
  absl::Status Serve(std::unique_ptr<FuseLife> life) ABSL_LOCKS_EXCLUDED(mu_);
  void EndLife() ABSL_LOCKS_EXCLUDED(mu_);
  void EndConnection() ABSL_LOCKS_EXCLUDED(mu_);
  bool TakeOver();
  bool EndlesslyDying(absl::Duration lived, bool stuck);
  void TookOver(pid_t old, absl::Time since) ABSL_LOCKS_EXCLUDED(mu_);

  // The watcher: until the destructor calls.
  void Watch();
  Event WaitForEvent() ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<Event> Pending(bool ended, bool holder_ended) ABSL_LOCKS_EXCLUDED(mu_);
  bool Replace(bool stuck);              // false: the destructor has called
  bool BeginAnew();                      // the same
  bool Swap() ABSL_LOCKS_EXCLUDED(mu_);  // the same
  bool SwapTo(std::unique_ptr<FuseLife> next, absl::Status* status);
  void HolderEnded() ABSL_LOCKS_EXCLUDED(mu_);
  void HolderChanged() ABSL_LOCKS_EXCLUDED(mu_);
  void Settled() ABSL_LOCKS_EXCLUDED(mu_);
  bool Sleep(absl::Duration duration) ABSL_LOCKS_EXCLUDED(mu_);  // the same
  void SetState(State state) ABSL_LOCKS_EXCLUDED(mu_);
  bool stopping() const ABSL_LOCKS_EXCLUDED(mu_);
  void Wake();

  // The caller of Upgrade().
  absl::Status PrepareAndSwap(const FuseConnection& connection, uint64_t lives)
      ABSL_LOCKS_EXCLUDED(mu_);
  void UpgradeOutdated();
  // What serves calls now, but is not `not_this`; null where there is nothing, also
  // at the deadline.
  std::shared_ptr<ControlChannel> AwaitChannel(const ControlChannel* not_this, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);

  const DataPlane::Options options_;
  const FuseConnection::Options connection_options_;
  const UniqueFd wake_;                              // an eventfd: something below has changed
  std::optional<std::vector<std::string>> adopted_;  // constant after Start()

  // Of the thread that calls Start(), then of the watcher.
  std::unique_ptr<FuseLife> life_;
  std::unique_ptr<FuseLifeWatch> watch_;  // of life_ and connection_, while there are both
  bool holder_ended_ = false;
  absl::Time settled_ = absl::InfiniteFuture();  // when an earlier run's calls have ended
  absl::Time served_since_ = absl::InfinitePast();
  absl::Duration pause_ = kMinPause;  // before the next new connection
  int short_lives_ = 0;               // one after the other
  absl::Time short_since_ = absl::InfinitePast();
  std::thread watcher_, upgrader_;

  mutable absl::Mutex mu_;  // never held across I/O, mount(2) or a callback
  State state_ ABSL_GUARDED_BY(mu_) = State::kAway;
  std::shared_ptr<FuseConnection> connection_ ABSL_GUARDED_BY(mu_);  // set by the watcher
  // Of the process that serves or is about to.
  std::shared_ptr<ControlChannel> channel_ ABSL_GUARDED_BY(mu_);
  pid_t pid_ ABSL_GUARDED_BY(mu_) = -1;
  bool failover_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool leaving_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t lives_ ABSL_GUARDED_BY(mu_) = 0;  // that have served
  uint64_t takeovers_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Duration last_stall_ ABSL_GUARDED_BY(mu_);

  // An upgrade: prepared by its caller, then made by the watcher.
  bool upgrading_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<ControlChannel> preparing_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<FuseLife> prepared_ ABSL_GUARDED_BY(mu_);
  uint64_t prepared_after_ ABSL_GUARDED_BY(mu_) = 0;  // lives_ when it was begun
  std::optional<absl::Status> upgraded_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::snapshotter
