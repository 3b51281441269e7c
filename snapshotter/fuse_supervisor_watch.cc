// The watcher: what it waits for, and what it does then.
#include <absl/time/clock.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "core/base/log.h"
#include "snapshotter/fuse_supervisor.h"

namespace kapsule::snapshotter {
namespace {

// A process that lived this long did not fail at its start.
constexpr absl::Duration kStableLife = absl::Seconds(10);
// Processes that die as soon as they serve must not take all of the processor.
constexpr absl::Duration kShortLife = absl::Milliseconds(100);
constexpr int kMaxShortLives = 32;

int MillisecondsUntil(absl::Time time) {  // -1: for ever
  if (time == absl::InfiniteFuture()) return -1;
  const absl::Duration left = std::clamp(time - absl::Now(), absl::ZeroDuration(), absl::Hours(1));
  return static_cast<int>(absl::ToInt64Milliseconds(left)) + 1;
}

}  // namespace

void FuseSupervisor::Watch() {
  for (;;) {
    switch (WaitForEvent()) {
      case Event::kStop:
        return;
      case Event::kDeath:
        log::error("kapsule-fuse {} has died", life_->pid());
        if (!Replace(false)) return;
        break;
      case Event::kStuck:
        log::error("kapsule-fuse {} is stuck and is killed: for {} {}", life_->pid(),
                   absl::FormatDuration(options_.stuck_after), watch_->stuck());
        if (!Replace(true)) return;
        break;
      case Event::kHolderEnded:
        HolderEnded();
        break;
      case Event::kHolderChanged:
        HolderChanged();
        break;
      case Event::kSettled:
        Settled();
        break;
      case Event::kUpgrade:
        if (!Swap()) return;
        break;
    }
  }
}

FuseSupervisor::Event FuseSupervisor::WaitForEvent() {
  for (bool first = true;; first = false) {
    int holder = -1;
    if (!holder_ended_) {
      absl::MutexLock lock(&mu_);
      holder = connection_->holder_fd();
    }
    pollfd fds[] = {{life_->pidfd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}, {holder, POLLIN, 0}};
    poll(fds, std::size(fds), first ? 0 : MillisecondsUntil(settled_));
    uint64_t count;
    if (fds[1].revents != 0 && read(wake_.get(), &count, sizeof(count)) < 0)
      log::error("read an eventfd failed");
    if (const auto event = Pending(fds[0].revents != 0, fds[2].revents != 0)) return *event;
  }
}

std::optional<FuseSupervisor::Event> FuseSupervisor::Pending(bool ended, bool holder_ended) {
  absl::MutexLock lock(&mu_);
  if (stopping_) return Event::kStop;
  if (ended || channel_->ended()) return Event::kDeath;
  if (holder_ended) return Event::kHolderEnded;
  if (!watch_->stuck().empty()) return Event::kStuck;
  if (!holder_ended_ && watch_->holder_answers() != failover_) return Event::kHolderChanged;
  if (prepared_ != nullptr) return Event::kUpgrade;
  if (settled_ <= absl::Now()) return Event::kSettled;
  return std::nullopt;
}

void FuseSupervisor::HolderEnded() {
  log::error(
      "kapsule-holder has ended: failover is off until the data plane begins anew; kapsule-fuse {} "
      "serves on",
      life_->pid());
  holder_ended_ = true;
  absl::MutexLock lock(&mu_);
  failover_ = false;
}

void FuseSupervisor::HolderChanged() {
  const bool answers = watch_->holder_answers();
  if (answers) {
    log::info("kapsule-holder answers again: failover is on");
  } else {
    log::error(
        "kapsule-holder does not answer: failover is off until it does; kapsule-fuse {} "
        "serves on",
        life_->pid());
  }
  absl::MutexLock lock(&mu_);
  failover_ = answers;
}

// What an earlier run asked for and did not see is there by now, or never will be.
void FuseSupervisor::Settled() {
  std::shared_ptr<FuseConnection> connection;
  {
    absl::MutexLock lock(&mu_);
    connection = connection_;
  }
  const absl::StatusOr<std::vector<std::string>> views = connection->Views();
  settled_ = views.ok() ? absl::InfiniteFuture() : absl::Now() + options_.settle_after;
  if (views.ok() && options_.on_settled) options_.on_settled(*views);
}

bool FuseSupervisor::Replace(bool stuck) {
  const absl::Time since = absl::Now();
  const absl::Duration lived = (stuck ? watch_->last_well() : since) - served_since_;
  const pid_t old = life_->pid();
  if (lived > kStableLife) pause_ = kMinPause;
  SetState(State::kReplacing);
  EndLife();
  const bool endless = EndlesslyDying(lived, stuck);
  if (stopping()) return false;
  // One that is silent may answer now.
  if (!holder_ended_ && !endless && TakeOver()) {
    TookOver(old, since);
    return true;
  }
  return !stopping() && BeginAnew();
}

// Whether lives of no length have followed each other for too long. Pauses between
// them once they are many; one that was stuck was a pause itself.
bool FuseSupervisor::EndlesslyDying(absl::Duration lived, bool stuck) {
  if (lived >= (stuck ? kStableLife : kShortLife)) {
    short_lives_ = 0;
    return false;
  }
  if (short_lives_++ == 0) short_since_ = absl::Now();
  if (!stuck && short_lives_ <= kMaxShortLives) return false;
  return absl::Now() - short_since_ > options_.give_up_after || (!stuck && !Sleep(kMaxPause));
}

// Starts successors until one serves. False where none can, or the destructor called.
bool FuseSupervisor::TakeOver() {
  std::shared_ptr<FuseConnection> connection;
  {
    absl::MutexLock lock(&mu_);
    connection = connection_;
  }
  absl::Duration pause = kMinPause;
  const absl::Time end = absl::Now() + options_.give_up_after;
  while (connection->usable()) {
    const absl::Status status = StartLife();
    if (status.ok()) return true;
    if (stopping()) return false;
    log::error("a successor failed: {}", Describe(status));
    // Another version's: no time heals that.
    if (absl::IsUnimplemented(status) || absl::Now() >= end) return false;
    if (!Sleep(pause)) return false;
    pause = std::min(2 * pause, kMaxPause);
  }
  return false;
}

void FuseSupervisor::TookOver(pid_t old, absl::Time since) {
  const absl::Duration stall = absl::Now() - since;
  log::info("kapsule-fuse {} took over from {}; readers waited for {} ms", life_->pid(), old,
            absl::ToInt64Milliseconds(stall));
  {
    absl::MutexLock lock(&mu_);
    ++takeovers_;
    last_stall_ = stall;
  }
  if (options_.on_takeover) options_.on_takeover();
}

bool FuseSupervisor::BeginAnew() {
  log::error(
      "the FUSE connection is given up: layers are mounted again, and containers that run have I/O "
      "errors until they are restarted");
  // First the connection: while somebody holds its device, reads that nobody will
  // answer hold up every unmount.
  EndConnection();
  if (options_.on_death) options_.on_death();
  for (;;) {
    if (!Sleep(pause_)) return false;
    pause_ = std::min(2 * pause_, kMaxPause);
    const absl::Status status = Connect();
    if (status.ok()) break;
    log::error("{}", Describe(status));
  }
  if (options_.on_restart) options_.on_restart();
  return true;
}

void FuseSupervisor::SetState(State state) {
  absl::MutexLock lock(&mu_);
  state_ = state;
}

bool FuseSupervisor::Sleep(absl::Duration duration) {
  absl::MutexLock lock(&mu_);
  return !mu_.AwaitWithTimeout(absl::Condition(&stopping_), duration);
}

bool FuseSupervisor::stopping() const {
  absl::MutexLock lock(&mu_);
  return stopping_;
}

bool FuseSupervisor::failover() const {
  absl::MutexLock lock(&mu_);
  return failover_;
}

}  // namespace kapsule::snapshotter
