// kapsule-fuse: the data plane. Started as root by kapsule-snapshotter, which
// passes it everything it needs through --control-fd; becomes a user without
// rights or network before it reads the first byte from anybody.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <thread>

#include "core/base/log.h"
#include "snapshotter/fuse/confine.h"
#include "snapshotter/fuse/control_server.h"

namespace kapsule::fuse {
namespace {

struct Flags {
  int control_fd = -1;
  uid_t uid = 0;
  gid_t gid = 0;
  std::string keyprovider;
  unsigned workers = std::clamp(std::thread::hardware_concurrency(), 1u, 4u);
  std::string log_level = "info";
};

// Signals arrive through a signalfd; each layer holds a descriptor.
absl::Status PrepareProcess(int control_fd) {
  signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (sigprocmask(SIG_BLOCK, &signals, nullptr) != 0) return ErrnoStatus(errno, "sigprocmask");
  if (fcntl(control_fd, F_SETFD, FD_CLOEXEC) != 0)
    return ErrnoStatus(errno, fmt::format("--control-fd {}", control_fd));
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  RETURN_IF_ERROR(PrepareProcess(flags.control_fd));
  // While it is root and may lock memory.
  ASSIGN_OR_RETURN(std::unique_ptr<WorkerPool> workers, WorkerPool::Make(flags.workers));
  RETURN_IF_ERROR(Confine(flags.uid, flags.gid));
  // Never destroyed: threads that cannot be stopped use it until _exit().
  auto* server =
      new ControlServer(UniqueFd(flags.control_fd), flags.keyprovider, std::move(workers));
  return server->Run();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Serves decrypted layers over FUSE for kapsule-snapshotter");
  app.add_option("--control-fd", flags.control_fd, "Control socket (SOCK_SEQPACKET)")
      ->required()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--uid", flags.uid, "User to become")->required();
  app.add_option("--gid", flags.gid, "Group to become")->required();
  app.add_option("--keyprovider", flags.keyprovider, "Socket that unwraps layer keys")->required();
  app.add_option("--workers", flags.workers, "Threads that serve reads")->check(CLI::Range(1, 64));
  app.add_option("--log-level", flags.log_level, "trace, debug, info, warning or error");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  }
  absl::Status status = InitLog("kapsule-fuse", flags.log_level);
  if (status.ok()) status = Run(flags);
  if (status.ok()) return 0;
  log::error("{}", Describe(status));
  return 1;
}

}  // namespace
}  // namespace kapsule::fuse

// Not by return: worker threads must not meet destructors.
int main(int argc, char** argv) { _exit(kapsule::fuse::Main(argc, argv)); }
