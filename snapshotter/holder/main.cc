// kapsule-holder: keeps descriptors by name for kapsule-snapshotter and
// kapsule-fuse, so that neither one's end closes what containers read through.
// Does as little as it can, so that nothing ever has to end it.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>

#include "core/base/log.h"
#include "core/control/holder_server.h"
#include "core/daemon/rights.h"
#include "core/daemon/signals.h"
#include "snapshotter/holder/seccomp.h"
#include "snapshotter/holder/service_fd_store.h"

namespace kapsule::holder {
namespace {

struct Flags {
  int listen_fd = -1;
  uid_t uid = 0;
  gid_t gid = 0;
  int restore_fds = 0;
  int64_t abandon_after_ms = 600'000;
  std::string log_level = "info";
};

// For the sockets and what a request brings.
constexpr rlim_t kOtherFds = 64;
constexpr rlim_t kWantedFds = control::kMaxHeldNames * control::kMaxHeldFds + kOtherFds;

// How many descriptors may be held.
absl::StatusOr<size_t> AllowManyFiles() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return ErrnoStatus(errno, "RLIMIT_NOFILE");
  limit.rlim_max = std::max(limit.rlim_max, kWantedFds);
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return ErrnoStatus(errno, "RLIMIT_NOFILE");
  }
  if (limit.rlim_cur < 2 * kOtherFds)
    return FailedPrecondition("{} open files are too few for a holder: raise LimitNOFILE",
                              limit.rlim_cur);
  return std::min(limit.rlim_cur, kWantedFds) - kOtherFds;
}

// The last process that a node short of memory should end: it is small, and what
// it keeps is what containers read through. Needs root; without it, as it is.
void AskToBeSpared() {
  const absl::StatusOr<UniqueFd> file = OpenFile("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (!file.ok() || !WriteAll(file->get(), AsBytes("-900")).ok())
    log::info("kapsule-holder is not spared where memory is short");
}

std::string_view Environment(const char* name) {
  const char* const value = getenv(name);
  return value == nullptr ? "" : value;
}

// Only these two end it: a terminal's signals and a lost log do not.
absl::StatusOr<daemon::SignalWaiter> Signals() {
  for (const int ignored : {SIGPIPE, SIGHUP, SIGINT, SIGQUIT}) signal(ignored, SIG_IGN);
  return daemon::SignalWaiter::Block({SIGTERM});
}

using control::HolderServer;

// Of everything, also in the service manager's store. The FUSE connection comes first,
// while there is room for a message even where the service manager hangs.
void LetGo(control::HolderStore& store) {
  store.Drop(control::kHeldFuse);
  store.Clear();
}

void LogEnd(HolderServer::End end, size_t names, const Flags& flags) {
  if (end == HolderServer::End::kAbandoned)
    log::warn(
        "for {} ms neither kapsule-snapshotter nor kapsule-fuse was connected: ends, and has"
        " let go of {} names; what still reads through them gets errors",
        flags.abandon_after_ms, names);
  else
    log::info("{}, with {} names",
              end == HolderServer::End::kQuit ? "asked to end" : "ended by SIGTERM", names);
}

absl::Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(const daemon::SignalWaiter signals, Signals());
  UniqueFd listening(flags.listen_fd);
  if (fcntl(flags.listen_fd, F_SETFD, FD_CLOEXEC) != 0)
    return ErrnoStatus(errno, fmt::format("--listen-fd {}", flags.listen_fd));
  ASSIGN_OR_RETURN(const size_t max_fds, AllowManyFiles());
  AskToBeSpared();

  std::unique_ptr<ServiceFdStore> mirror;
  if (const std::string_view address = Environment("NOTIFY_SOCKET"); !address.empty()) {
    ASSIGN_OR_RETURN(mirror, ServiceFdStore::Make(address));
  }
  control::HolderStore store(max_fds, mirror.get());
  if (flags.restore_fds > 0) {
    const size_t restored =
        Restore(store, flags.listen_fd - flags.restore_fds, Environment("LISTEN_FDNAMES"));
    log::info("the service manager gave back {} descriptors under {} names", restored,
              store.names());
  }
  if (mirror != nullptr) mirror->StartSending();
  ASSIGN_OR_RETURN(const std::unique_ptr<HolderServer> server,
                   HolderServer::Make(std::move(listening), flags.uid, store));
  RETURN_IF_ERROR(daemon::GiveUpRights(flags.uid, flags.gid));
  log::info("holds up to {} descriptors", max_fds);  // also reads the time zone's file
  RETURN_IF_ERROR(AllowFewSystemCalls());
  ASSIGN_OR_RETURN(const HolderServer::End end,
                   server->Run(signals.fd(), flags.abandon_after_ms == 0
                                                 ? absl::InfiniteDuration()
                                                 : absl::Milliseconds(flags.abandon_after_ms)));
  const size_t names = store.names();
  if (end == HolderServer::End::kAbandoned) LetGo(store);
  LogEnd(end, names, flags);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app{
      "Keeps descriptors for kapsule-snapshotter and kapsule-fuse while they are killed or"
      " upgraded. Started by kapsule-snapshotter; ends on its word, on SIGTERM, or when both"
      " have been gone for too long."};
  Flags flags;
  app.add_option("--listen-fd", flags.listen_fd, "The SOCK_SEQPACKET socket to listen on")
      ->required()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--uid", flags.uid, "The user to become")->required();
  app.add_option("--gid", flags.gid, "The group to become")->required();
  app.add_option("--restore-fds", flags.restore_fds,
                 "How many descriptors just below --listen-fd came from the service manager;"
                 " LISTEN_FDNAMES names them")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--abandon-after-ms", flags.abandon_after_ms,
                 "After how long without a connection it ends, so that what is still read fails"
                 " instead of hanging; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--log-level", flags.log_level, "trace, debug, info, warning or error");
  app.set_version_flag("--version", "kapsule-holder " KAPSULE_VERSION);
  CLI11_PARSE(app, argc, argv);

  absl::Status status = InitLog("kapsule-holder", flags.log_level);
  if (status.ok() && flags.restore_fds > flags.listen_fd)
    status = InvalidArgument("--restore-fds {} are not below --listen-fd {}", flags.restore_fds,
                             flags.listen_fd);
  if (!status.ok()) {
    fmt::print(stderr, "kapsule-holder: {}\n", Message(status));
    return 2;
  }
  status = Run(flags);
  if (status.ok()) return 0;
  log::error("{}", Message(status));
  return 1;
}

}  // namespace
}  // namespace kapsule::holder

int main(int argc, char** argv) { return kapsule::holder::Main(argc, argv); }
