#include "snapshotter/fuse_connection.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/log.h"
#include "core/base/unix_socket.h"

namespace kapsule::snapshotter {
namespace {

using control::Holder;

constexpr int kHolderEndMs = 2000;
constexpr int kMaxAsked = 3;
// kapsule-fuse keeps so many reads apart that wait; with fewer of all kinds under way
// one of its threads is always there for the next request.
constexpr int kMaxApart = 4096;

const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

// Asks a holder that does not answer again: what it has is what containers read
// through, and it may only be short of time.
template <typename Ask>
auto Patiently(const Ask& ask) {
  auto answer = ask();
  for (int asked = 1; asked < kMaxAsked && absl::IsUnavailable(StatusOf(answer)); ++asked)
    answer = ask();
  return answer;
}

absl::StatusOr<UniqueFd> GetOne(const Holder& holder, std::string_view name) {
  ASSIGN_OR_RETURN(std::vector<UniqueFd> fds, holder.Get(name));
  if (fds.size() != 1)
    return InvalidArgument("the holder has {} descriptors as {}", fds.size(), name);
  return std::move(fds[0]);
}

absl::StatusOr<UniqueFd> DeviceOf(const Holder& holder) {
  ASSIGN_OR_RETURN(UniqueFd device, GetOne(holder, control::kHeldFuse));
  struct stat st;
  if (fstat(device.get(), &st) != 0) return ErrnoStatus(errno, "stat the held FUSE device");
  if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(10, 229))
    return InvalidArgument("what the holder has as FUSE device is none");
  return device;
}

absl::StatusOr<short> Poll(const UniqueFd& device) {
  pollfd state{device.get(), POLLIN, 0};
  if (poll(&state, 1, 0) < 0) return ErrnoStatus(errno, "poll the held FUSE device");
  return state.revents;
}

// Whether the kernel still has the connection of this device.
absl::Status CheckDevice(const Holder& holder) {
  ASSIGN_OR_RETURN(const UniqueFd device, DeviceOf(holder));
  ASSIGN_OR_RETURN(const short state, Poll(device));
  if ((state & POLLERR) != 0) return FailedPrecondition("the FUSE connection has ended");
  return absl::OkStatus();
}

absl::StatusOr<FuseConnection::Server> ServerOf(const Holder& holder) {
  ASSIGN_OR_RETURN(UniqueFd pidfd, GetOne(holder, control::kHeldProcess));
  FuseConnection::Server server;
  ASSIGN_OR_RETURN(server.process, DaemonProcess::Adopt(std::move(pidfd)));
  absl::StatusOr<UniqueFd> socket = GetOne(holder, control::kHeldControl);
  int type = 0;
  socklen_t size = sizeof(type);
  if (socket.ok() && getsockopt(socket->get(), SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
      type == SOCK_SEQPACKET)
    server.control = *std::move(socket);
  return server;
}

// An end that the holder tells by its connection.
void QuitHolder(const Holder& holder) {
  const absl::Status quit = holder.Quit();
  pollfd gone{holder.connection(), POLLIN, 0};
  if (poll(&gone, 1, kHolderEndMs) != 1)
    log::warn("kapsule-holder does not end: {}", quit.ok() ? "no reason" : Describe(quit));
}

// The holder at the other end. Null where that cannot be told.
std::unique_ptr<DaemonProcess> ProcessOf(const UniqueFd& connection,
                                         const FuseConnection::Options& options) {
  const absl::StatusOr<PeerCredentials> peer = PeerOf(connection.get());
  if (!peer.ok()) return nullptr;
  absl::StatusOr<std::unique_ptr<DaemonProcess>> process =
      DaemonProcess::Find(peer->pid, options.holder_program.filename().native());
  return process.ok() ? *std::move(process) : nullptr;
}

// `stored` come before the listening socket, as kapsule-holder --help says.
absl::StatusOr<std::unique_ptr<DaemonProcess>> StartHolder(const FuseConnection::Options& options,
                                                           const std::vector<int>& stored) {
  ASSIGN_OR_RETURN(const UniqueFd listening,
                   ListenUnix(options.holder_socket, SOCK_SEQPACKET, 0600));
  std::vector<int> fds = stored;
  const size_t listen_fd = DaemonProcess::kFirstFd + fds.size();
  fds.push_back(listening.get());
  const int64_t abandon_after_ms = options.abandon_after == absl::InfiniteDuration()
                                       ? 0
                                       : absl::ToInt64Milliseconds(options.abandon_after);
  std::vector<std::string> arguments = {
      "--listen-fd", std::to_string(listen_fd),   "--uid",       std::to_string(options.uid),
      "--gid",       std::to_string(options.gid), "--log-level", options.log_level};
  arguments.insert(arguments.end(), {"--abandon-after-ms", std::to_string(abandon_after_ms)});
  if (!stored.empty())
    arguments.insert(arguments.end(), {"--restore-fds", std::to_string(stored.size())});
  return DaemonProcess::Start(options.holder_program, std::move(arguments), fds);
}

}  // namespace

absl::StatusOr<std::unique_ptr<FuseConnection>> FuseConnection::Make(const Options& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<DaemonProcess> process, StartHolder(options, {}));
  ASSIGN_OR_RETURN(UniqueFd holder, ConnectUnix(options.holder_socket, SOCK_SEQPACKET));
  ASSIGN_OR_RETURN(FuseMount mount, FuseMount::Make(options.views));
  const UniqueFd device = mount.TakeDevice();
  std::unique_ptr<FuseConnection> made(
      new FuseConnection(options, std::move(process), std::move(holder), std::move(mount)));
  RETURN_IF_ERROR(Annotate(made->holder_.Put(control::kHeldFuse, {device.get()}),
                           "start kapsule-holder (its log says more)"));
  return made;
}

absl::StatusOr<std::unique_ptr<FuseConnection>> FuseConnection::Adopt(
    const Options& options, const std::vector<int>& stored) {
  absl::StatusOr<UniqueFd> socket = ConnectUnix(options.holder_socket, SOCK_SEQPACKET);
  std::unique_ptr<DaemonProcess> process;
  if (!socket.ok() && !stored.empty()) {
    ASSIGN_OR_RETURN(process, StartHolder(options, stored));
    socket = ConnectUnix(options.holder_socket, SOCK_SEQPACKET);
  }
  if (!socket.ok()) return NotFound("no holder: {}", Message(socket.status()));
  if (process == nullptr) process = ProcessOf(*socket, options);
  absl::StatusOr<FuseMount> mount = FuseMount::Adopt(options.views);
  ASSIGN_OR_RETURN(UniqueFd copy, socket->Duplicate());
  const Holder holder(std::move(copy), options.patience);
  absl::Status status = Patiently([&] { return CheckDevice(holder); });
  if (status.ok() && mount.ok())
    return std::unique_ptr<FuseConnection>(
        new FuseConnection(options, std::move(process), *std::move(socket), *std::move(mount)));
  // What runs is ended by its process, or else by the end of its mount.
  const bool hangs = absl::IsUnavailable(status);
  if (status.ok()) status = mount.status();
  if (!hangs) {
    if (absl::StatusOr<Server> server = ServerOf(holder); server.ok()) server->process->End();
    QuitHolder(holder);
  } else {
    unlink(options.holder_socket.c_str());
  }
  return FailedPrecondition("{}", Message(status));
}

void FuseConnection::End() {
  if (!mount_) return;
  QuitHolder(holder_);
  process_.reset();
  mount_.reset();
  unlink(options_.holder_socket.c_str());
}

void FuseConnection::Leave() {
  if (!mount_) return;
  mount_->Leave();
  mount_.reset();
  if (process_ != nullptr) process_->Leave();
}

bool FuseConnection::usable() const {
  const absl::Status status = CheckDevice(holder_);
  if (!status.ok()) log::error("no successor can take over: {}", Describe(status));
  return status.ok();
}

absl::StatusOr<UniqueFd> FuseConnection::ConnectToHolder() const {
  return ConnectUnix(options_.holder_socket, SOCK_SEQPACKET);
}

// In this order: a process that is found has its socket beside it.
absl::Status FuseConnection::Remember(const DaemonProcess& process, int control) const {
  RETURN_IF_ERROR(holder_.Put(control::kHeldControl, {control}));
  return holder_.Put(control::kHeldProcess, {process.pidfd()});
}

absl::StatusOr<FuseConnection::Server> FuseConnection::Remembered() const {
  return Patiently([this] { return ServerOf(holder_); });
}

absl::StatusOr<bool> FuseConnection::RequestsLie() const {
  ASSIGN_OR_RETURN(const UniqueFd device, DeviceOf(holder_));
  ASSIGN_OR_RETURN(const short state, Poll(device));
  if ((state & POLLIN) == 0) return false;
  // Where that cannot be told, FuseMount::Tune() could not allow so many either.
  return mount_->Unanswered().value_or(0) < kMaxApart;
}

absl::StatusOr<std::vector<std::string>> FuseConnection::Views() const {
  ASSIGN_OR_RETURN(std::vector<std::string> names,
                   Patiently([this] { return holder_.List(control::kHeldViewPrefix); }));
  for (std::string& name : names) name.erase(0, control::kHeldViewPrefix.size());
  return names;
}

}  // namespace kapsule::snapshotter
