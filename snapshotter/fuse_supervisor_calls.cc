// What other threads ask of the supervisor while its watcher runs.
#include <absl/time/clock.h>

#include "core/base/log.h"
#include "core/control/holder_wire.h"
#include "snapshotter/fuse_supervisor.h"

namespace kapsule::snapshotter {

std::shared_ptr<ControlChannel> FuseSupervisor::AwaitChannel(const ControlChannel* not_this,
                                                             absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  const auto settled = [this, not_this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || state_ == State::kAway ||
           (state_ == State::kServing && channel_.get() != not_this);
  };
  if (!mu_.AwaitWithDeadline(absl::Condition(&settled), deadline)) return nullptr;
  return state_ == State::kServing && channel_.get() != not_this ? channel_ : nullptr;
}

absl::StatusOr<v1::DataPlaneReply> FuseSupervisor::Call(const v1::DataPlaneRequest& request,
                                                        const std::vector<int>& fds,
                                                        absl::Time deadline) {
  std::shared_ptr<ControlChannel> channel = AwaitChannel(nullptr, deadline);
  if (channel == nullptr) return Unavailable("kapsule-fuse is not running");
  absl::StatusOr<v1::DataPlaneReply> reply = channel->Call(request, fds, deadline);
  if (reply.ok() || request.has_open() || !channel->ended()) return reply;
  channel = AwaitChannel(channel.get(), deadline);
  return channel == nullptr ? reply : channel->Call(request, fds, deadline);
}

// To the holder first: whichever process the request reaches, the next one has it.
absl::Status FuseSupervisor::UseFetcher(const UniqueFd& socket, absl::Time deadline) {
  std::shared_ptr<FuseConnection> connection;
  {
    absl::MutexLock lock(&mu_);
    if (failover_) connection = connection_;
  }
  if (connection != nullptr) {
    ASSIGN_OR_RETURN(UniqueFd holder, connection->ConnectToHolder());
    RETURN_IF_ERROR(control::Holder(std::move(holder)).Put(control::kHeldFetch, {socket.get()}));
  }
  v1::DataPlaneRequest request;
  request.mutable_use_fetcher();
  return Call(request, {socket.get()}, deadline).status();
}

absl::Status FuseSupervisor::Upgrade() {
  std::shared_ptr<FuseConnection> connection;
  uint64_t lives;
  {
    absl::MutexLock lock(&mu_);
    if (upgrading_) return absl::AbortedError("another upgrade is under way");
    if (state_ != State::kServing || stopping_) return Unavailable("kapsule-fuse is not running");
    if (!failover_)
      return FailedPrecondition(
          "kapsule-holder has ended or does not answer: nothing can take over from kapsule-fuse");
    upgrading_ = true;
    connection = connection_;
    lives = lives_;
  }
  const absl::Status status = PrepareAndSwap(*connection, lives);
  absl::MutexLock lock(&mu_);
  upgrading_ = false;
  return status;
}

absl::Status FuseSupervisor::PrepareAndSwap(const FuseConnection& connection, uint64_t lives) {
  ASSIGN_OR_RETURN(std::unique_ptr<FuseLife> life,
                   FuseLife::Start(options_, connection, [this] { Wake(); }));
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) return Cancelled("the snapshotter stops");
    preparing_ = life->channel();
  }
  const absl::Status ready = life->Prepare(options_.prepare_timeout);
  {
    absl::MutexLock lock(&mu_);
    preparing_ = nullptr;
    if (ready.ok() && !stopping_) {
      prepared_ = std::move(life);
      prepared_after_ = lives;
      upgraded_.reset();
    }
  }
  if (!ready.ok())
    return Annotate(ready, "the new kapsule-fuse did not get ready, the old one serves on");
  Wake();
  absl::MutexLock lock(&mu_);
  const auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || upgraded_.has_value();
  };
  mu_.Await(absl::Condition(&over));
  return upgraded_ ? *upgraded_ : Cancelled("the snapshotter stops");
}

bool FuseSupervisor::Swap() {
  std::unique_ptr<FuseLife> next;
  bool outdated;
  {
    absl::MutexLock lock(&mu_);
    next = std::move(prepared_);
    outdated = prepared_after_ != lives_;
  }
  absl::Status status;
  bool running = true;
  // Where the old one has died since, its successor runs the program on disk too.
  if (!outdated && next->channel()->ended()) {
    status = Unavailable("the new kapsule-fuse has ended, the old one serves on");
  } else if (!outdated) {
    running = SwapTo(std::move(next), &status);
  }
  absl::MutexLock lock(&mu_);
  upgraded_ = status;
  return running;
}

bool FuseSupervisor::SwapTo(std::unique_ptr<FuseLife> next, absl::Status* status) {
  const absl::Time since = absl::Now();
  const pid_t old = life_->pid();
  SetState(State::kReplacing);
  EndLife();
  *status = Serve(std::move(next));
  if (!status->ok()) {
    *status = Annotate(*status, "the new kapsule-fuse got ready, but did not serve");
    log::error("{}", Describe(*status));
    if (!TakeOver()) return !stopping() && BeginAnew();
  }
  TookOver(old, since);
  return true;
}

void FuseSupervisor::UpgradeOutdated() {
  log::info("kapsule-fuse runs another program, or with other options, than now: upgrading it");
  const absl::Status status = Upgrade();
  if (!status.ok()) log::warn("kapsule-fuse is not upgraded: {}", Describe(status));
}

DataPlaneStatus FuseSupervisor::status() const {
  DataPlaneStatus status;
  std::shared_ptr<FuseConnection> connection;
  {
    absl::MutexLock lock(&mu_);
    status.pid = pid_;
    status.serving = state_ == State::kServing && !channel_->ended();
    status.failover = failover_;
    status.takeovers = takeovers_;
    status.last_stall = last_stall_;
    if (failover_) connection = connection_;
  }
  if (connection == nullptr) return status;
  const absl::StatusOr<std::vector<std::string>> views = connection->Views();
  if (views.ok()) status.views = views->size();
  return status;
}

bool FuseSupervisor::serving() const {
  absl::MutexLock lock(&mu_);
  return state_ == State::kServing && !channel_->ended();  // known before the watcher wakes
}

pid_t FuseSupervisor::pid() const {
  absl::MutexLock lock(&mu_);
  return pid_;
}

}  // namespace kapsule::snapshotter
