#include "snapshotter/fuse_supervisor.h"

#include <absl/time/clock.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/log.h"

namespace kapsule::snapshotter {
namespace {

// Of the holder, which does little: it is silent before kapsule-fuse is stuck.
constexpr absl::Duration kHolderPatience = absl::Seconds(5);

}  // namespace

FuseSupervisor::FuseSupervisor(DataPlane::Options options)
    : options_(std::move(options)),
      connection_options_{.views = options_.views,
                          .holder_program = options_.holder_program,
                          .holder_socket = options_.holder_socket,
                          .uid = options_.uid,
                          .gid = options_.gid,
                          .log_level = options_.log_level,
                          .patience = std::min(kHolderPatience, options_.stuck_after),
                          .abandon_after = options_.abandon_after},
      wake_(eventfd(0, EFD_CLOEXEC)) {}

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
  watch_.reset();
  life_.reset();
  absl::MutexLock lock(&mu_);
  if (connection_ != nullptr) connection_->Leave();
}

void FuseSupervisor::Leave() {
  absl::MutexLock lock(&mu_);
  leaving_ = true;
}

// Goes on with what an earlier run left. Where the holder does not tell who serves,
// that one may run on: then nobody takes over from it.
absl::Status FuseSupervisor::Adopt() {
  ASSIGN_OR_RETURN(std::shared_ptr<FuseConnection> connection,
                   FuseConnection::Adopt(connection_options_, options_.stored_fds));
  SetConnection(connection);
  absl::StatusOr<FuseConnection::Server> server = connection->Remembered();
  if (absl::IsUnavailable(server.status())) return server.status();
  const absl::Status status = server.ok() ? GoOn(*std::move(server)) : server.status();
  if (status.ok()) {
    log::info("going on with kapsule-fuse {}", life_->pid());
    connection->Tune();  // an earlier run may have ended before it did
  } else {
    log::info("a new kapsule-fuse takes over what an earlier run left: {}", Message(status));
    if (!TakeOver()) return Unavailable("no kapsule-fuse could take over");
  }
  ASSIGN_OR_RETURN(adopted_, connection->Views());
  settled_ = absl::Now() + options_.settle_after;
  return absl::OkStatus();
}

// With the process that an earlier run left.
absl::Status FuseSupervisor::GoOn(FuseConnection::Server server) {
  ASSIGN_OR_RETURN(std::unique_ptr<FuseLife> life,
                   FuseLife::Adopt(std::move(server), [this] { Wake(); }));
  return Serve(std::move(life));
}

void FuseSupervisor::SetConnection(const std::shared_ptr<FuseConnection>& connection) {
  holder_ended_ = false;
  settled_ = absl::InfiniteFuture();
  absl::MutexLock lock(&mu_);
  connection_ = connection;
  failover_ = true;
}

absl::Status FuseSupervisor::Connect() {
  RETURN_IF_ERROR(DetachFuseMounts(options_.views));
  RETURN_IF_ERROR(MakeDirs(options_.views, 0700));
  ASSIGN_OR_RETURN(std::shared_ptr<FuseConnection> connection,
                   FuseConnection::Make(connection_options_));
  SetConnection(connection);
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
  watch_ = std::make_unique<FuseLifeWatch>(life_->channel(), life_->pid(), connection,
                                           options_.stuck_after, [this] { Wake(); });
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
  watch_.reset();
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

}  // namespace kapsule::snapshotter
