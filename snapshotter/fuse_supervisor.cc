#include "snapshotter/fuse_supervisor.h"

#include <absl/time/clock.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/log.h"

namespace kapsule::snapshotter {
namespace {

constexpr absl::Duration kMinPause = absl::Milliseconds(100), kMaxPause = absl::Seconds(5);
// A process that lived this long did not fail at its start.
constexpr absl::Duration kStableLife = absl::Seconds(10);
// Processes that die as soon as they serve must not take all of the processor.
constexpr absl::Duration kShortLife = absl::Milliseconds(100);
constexpr int kMaxShortLives = 32;

}  // namespace

FuseSupervisor::FuseSupervisor(DataPlane::Options options)
    : options_(std::move(options)),
      connection_options_{.views = options_.views,
                          .holder_program = options_.holder_program,
                          .holder_socket = options_.holder_socket,
                          .uid = options_.uid,
                          .gid = options_.gid,
                          .log_level = options_.log_level},
      wake_(eventfd(0, EFD_CLOEXEC)),
      pause_(kMinPause) {}

absl::Status FuseSupervisor::Start() {
  if (!wake_.valid()) return ErrnoStatus(errno, "eventfd");
  std::vector<UniqueFd> stored;  // closed in the end: they keep the connection alive
  for (const int fd : options_.stored_fds) stored.emplace_back(fd);
  const absl::Status adopted = Adopt();
  stored.clear();
  if (!adopted.ok()) {
    log::info("the data plane begins anew: {}", Message(adopted));
    EndLife();
    EndConnection();
    if (options_.on_death) options_.on_death();
    RETURN_IF_ERROR(Connect());
  }
  watcher_ = std::thread([this] { Watch(); });
  if (adopted.ok() && !life_->IsCurrent(options_))
    upgrader_ = std::thread([this] { UpgradeOutdated(); });
  return absl::OkStatus();
}

FuseSupervisor::~FuseSupervisor() { Stop(); }

void FuseSupervisor::Stop() {
  bool leaving;
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    leaving = leaving_;
    // What is asked to serve need not be waited for.
    if (!leaving && state_ != State::kServing && channel_ != nullptr) channel_->Shutdown();
    if (preparing_ != nullptr) preparing_->Shutdown();
  }
  Wake();
  if (watcher_.joinable()) watcher_.join();
  if (upgrader_.joinable()) upgrader_.join();
  if (!leaving) {
    EndLife();
    EndConnection();
    return;
  }
  if (life_ != nullptr) life_->Leave();
  life_.reset();
  absl::MutexLock lock(&mu_);
  if (connection_ != nullptr) connection_->Leave();
}

void FuseSupervisor::Leave() {
  absl::MutexLock lock(&mu_);
  leaving_ = true;
}

// Goes on with what an earlier run left.
absl::Status FuseSupervisor::Adopt() {
  ASSIGN_OR_RETURN(std::shared_ptr<FuseConnection> connection,
                   FuseConnection::Adopt(connection_options_, options_.stored_fds));
  {
    absl::MutexLock lock(&mu_);
    connection_ = connection;
    failover_ = true;
  }
  const absl::Status status = GoOn(*connection);
  if (status.ok()) {
    log::info("going on with kapsule-fuse {}", life_->pid());
    connection->Tune();  // an earlier run may have ended before it did
  } else {
    log::info("a new kapsule-fuse takes over what an earlier run left: {}", Message(status));
    if (!TakeOver()) return Unavailable("no kapsule-fuse could take over");
  }
  ASSIGN_OR_RETURN(adopted_, connection->Views());
  return absl::OkStatus();
}

// With the process that an earlier run left.
absl::Status FuseSupervisor::GoOn(const FuseConnection& connection) {
  ASSIGN_OR_RETURN(FuseConnection::Server server, connection.Remembered());
  ASSIGN_OR_RETURN(std::unique_ptr<FuseLife> life,
                   FuseLife::Adopt(std::move(server), [this] { Wake(); }));
  return Serve(std::move(life));
}

absl::Status FuseSupervisor::Connect() {
  RETURN_IF_ERROR(DetachFuseMounts(options_.views));
  RETURN_IF_ERROR(MakeDirs(options_.views, 0700));
  ASSIGN_OR_RETURN(std::shared_ptr<FuseConnection> connection,
                   FuseConnection::Make(connection_options_));
  {
    absl::MutexLock lock(&mu_);
    connection_ = connection;
    failover_ = true;
  }
  const absl::Status status = StartLife();
  if (!status.ok()) {
    EndConnection();
    return Annotate(status, "start kapsule-fuse");
  }
  connection->Tune();
  return absl::OkStatus();
}

absl::Status FuseSupervisor::StartLife() {
  std::shared_ptr<FuseConnection> connection;
  {
    absl::MutexLock lock(&mu_);
    connection = connection_;
  }
  ASSIGN_OR_RETURN(std::unique_ptr<FuseLife> life,
                   FuseLife::Start(options_, *connection, [this] { Wake(); }));
  return Serve(std::move(life));
}

// Nothing else serves. Ends `life` where it fails.
absl::Status FuseSupervisor::Serve(std::unique_ptr<FuseLife> life) {
  std::shared_ptr<FuseConnection> connection;
  {
    absl::MutexLock lock(&mu_);
    if (stopping_ && !leaving_) return Cancelled("the snapshotter stops");
    channel_ = life->channel();
    connection = connection_;
  }
  RETURN_IF_ERROR(life->Serve(*connection));
  life_ = std::move(life);
  served_since_ = absl::Now();
  absl::MutexLock lock(&mu_);
  pid_ = life_->pid();
  state_ = State::kServing;
  ++lives_;
  return absl::OkStatus();
}

void FuseSupervisor::EndLife() {
  if (life_ == nullptr) return;
  const pid_t pid = life_->pid();
  const std::string how = life_->End();
  log::info("kapsule-fuse {} has ended: {}", pid, how);
  life_.reset();
  absl::MutexLock lock(&mu_);
  channel_ = nullptr;
  pid_ = -1;
}

void FuseSupervisor::EndConnection() {
  std::shared_ptr<FuseConnection> connection;
  {
    absl::MutexLock lock(&mu_);
    connection.swap(connection_);
    failover_ = false;
    state_ = State::kAway;
  }
  if (connection != nullptr) connection->End();
}

void FuseSupervisor::Wake() {
  const uint64_t one = 1;
  if (write(wake_.get(), &one, sizeof(one)) < 0) log::error("write an eventfd failed");
}

void FuseSupervisor::Watch() {
  for (;;) {
    switch (WaitForEvent()) {
      case Event::kStop:
        return;
      case Event::kDeath:
        log::error("kapsule-fuse {} has died", life_->pid());
        if (!Replace()) return;
        break;
      case Event::kHolderEnded:
        HolderEnded();
        break;
      case Event::kUpgrade:
        if (!Swap()) return;
        break;
    }
  }
}

FuseSupervisor::Event FuseSupervisor::WaitForEvent() {
  for (;;) {
    int holder = -1;
    {
      absl::MutexLock lock(&mu_);
      if (stopping_) return Event::kStop;
      if (channel_->ended()) return Event::kDeath;
      if (prepared_ != nullptr) return Event::kUpgrade;
      if (failover_) holder = connection_->holder_fd();
    }
    pollfd fds[] = {{life_->pidfd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}, {holder, POLLIN, 0}};
    poll(fds, std::size(fds), -1);
    uint64_t count;
    if (fds[1].revents != 0 && read(wake_.get(), &count, sizeof(count)) < 0)
      log::error("read an eventfd failed");
    if (stopping()) return Event::kStop;
    if (fds[0].revents != 0) return Event::kDeath;
    if (fds[2].revents != 0) return Event::kHolderEnded;
  }
}

void FuseSupervisor::HolderEnded() {
  log::error(
      "kapsule-holder has ended: failover is off until the data plane begins anew; kapsule-fuse {} "
      "serves on",
      life_->pid());
  absl::MutexLock lock(&mu_);
  failover_ = false;
}

bool FuseSupervisor::Replace() {
  const absl::Time since = absl::Now();
  const absl::Duration lived = since - served_since_;
  const pid_t old = life_->pid();
  if (lived > kStableLife) pause_ = kMinPause;
  SetState(State::kReplacing);
  EndLife();
  const bool endless = EndlesslyDying(lived);
  if (stopping()) return false;
  if (failover() && !endless && TakeOver()) {
    TookOver(old, since);
    return true;
  }
  return !stopping() && BeginAnew();
}

// Whether lives of no length have followed each other for too long. Pauses between
// them once they are many.
bool FuseSupervisor::EndlesslyDying(absl::Duration lived) {
  if (lived >= kShortLife) {
    short_lives_ = 0;
    return false;
  }
  if (short_lives_++ == 0) short_since_ = absl::Now();
  if (short_lives_ <= kMaxShortLives) return false;
  return absl::Now() - short_since_ > options_.give_up_after || !Sleep(kMaxPause);
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
  absl::MutexLock lock(&mu_);
  ++takeovers_;
  last_stall_ = stall;
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
