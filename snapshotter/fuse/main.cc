// kapsule-fuse: the data plane. Started as root by kapsule-snapshotter, which
// passes it everything it needs through --control-fd and --holder-fd; becomes a
// user without rights or network before it reads a byte of a layer or request.
#include <absl/time/clock.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <ctime>
#include <thread>

#include "core/base/heap.h"
#include "core/base/log.h"
#include "core/base/secret_arena.h"
#include "snapshotter/fuse/bind_symbols.h"
#include "snapshotter/fuse/confine.h"
#include "snapshotter/fuse/control_server.h"
#include "snapshotter/fuse/seccomp.h"

namespace kapsule::fuse {
namespace {

struct Flags {
  int control_fd = -1, holder_fd = -1;
  uid_t uid = 0;
  gid_t gid = 0;
  std::string keyprovider;
  unsigned workers = std::clamp(std::thread::hardware_concurrency(), 1u, 4u);
  uint32_t key_grace_ms = 60'000, fetch_grace_ms = 60'000;
  ReadEngine::Options engine;
  std::string log_level = "info";
};

// Less would make every read wait for another's memory.
constexpr size_t kMinReadAhead = 8 << 20, kMinChunkCache = 2 << 20, kMinIndexCache = 1 << 20;

absl::Status CheckSizes(const ReadEngine::Options& options) {
  const auto check = [](const char* flag, size_t bytes, size_t least) {
    if (bytes >= least) return absl::OkStatus();
    return InvalidArgument("{} {} is too small: at least {} bytes are needed", flag, bytes, least);
  };
  RETURN_IF_ERROR(check("--read-ahead-bytes", options.read_ahead_bytes, kMinReadAhead));
  RETURN_IF_ERROR(check("--chunk-cache-bytes", options.chunk_cache_bytes, kMinChunkCache));
  return check("--index-cache-bytes", options.index_cache_bytes, kMinIndexCache);
}

// Signals arrive through a signalfd; each layer holds a descriptor.
absl::Status PrepareProcess(const Flags& flags) {
  signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (sigprocmask(SIG_BLOCK, &signals, nullptr) != 0) return ErrnoStatus(errno, "sigprocmask");
  for (const int fd : {flags.control_fd, flags.holder_fd})
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
      return ErrnoStatus(errno, fmt::format("passed descriptor {}", fd));
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  return absl::OkStatus();
}

// A predecessor's, where there was one.
absl::StatusOr<std::unique_ptr<RequestMemory>> OpenMemory(const control::Holder& holder,
                                                          unsigned workers) {
  absl::StatusOr<std::vector<UniqueFd>> held = holder.Get(control::kHeldRequests);
  if (absl::IsNotFound(held.status())) return RequestMemory::Make(workers);
  if (!held.ok()) return Annotate(held.status(), "ask the holder for the memory of requests");
  if (held->size() != 1) return InvalidArgument("the holder has no memory of requests");
  return RequestMemory::Adopt(std::move(held->front()), workers);
}

void WarnOfLockLimit() {
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  log::warn(
      "RLIMIT_MEMLOCK of {} bytes is too small to lock the buffers: plaintext may be swapped out, "
      "and a request may fail when this process is killed; raise it or grant CAP_IPC_LOCK",
      limit.rlim_cur);
}

// Since when this process runs, but for what it waited for a processor.
absl::Time ProcessStart() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return absl::Now() - absl::DurationFromTimespec(used);
}

absl::Status Run(const Flags& flags, absl::Time process_start) {
  RETURN_IF_ERROR(CheckSizes(flags.engine));
  RETURN_IF_ERROR(PrepareProcess(flags));
  const auto holder = std::make_shared<const control::Holder>(UniqueFd(flags.holder_fd));
  // While it is root and may lock memory.
  RETURN_IF_ERROR(InstallSecretArena());
  ASSIGN_OR_RETURN(std::unique_ptr<RequestMemory> memory, OpenMemory(*holder, flags.workers));
  ASSIGN_OR_RETURN(std::unique_ptr<ReadEngine> engine, ReadEngine::Make(flags.engine));
  ASSIGN_OR_RETURN(std::unique_ptr<WorkerPool> workers, WorkerPool::Make(flags.workers, *engine));
  if (!memory->locked() || !workers->locked()) WarnOfLockLimit();
  RETURN_IF_ERROR(Confine({flags.uid, flags.gid, flags.keyprovider}));
  RETURN_IF_ERROR(AllowOnlyNeededCalls());
  // Never destroyed: threads that cannot be stopped use it until _exit().
  auto* server = new ControlServer({UniqueFd(flags.control_fd),
                                    holder,
                                    flags.keyprovider,
                                    absl::Milliseconds(flags.key_grace_ms),
                                    {.grace = absl::Milliseconds(flags.fetch_grace_ms)},
                                    process_start},
                                   std::move(memory), std::move(engine), std::move(workers));
  return server->Run();
}

int Main(int argc, char** argv) {
  const absl::Time process_start = ProcessStart();
  KeepHeapSmall();
  Flags flags;
  CLI::App app("Serves decrypted layers over FUSE for kapsule-snapshotter");
  app.add_option("--control-fd", flags.control_fd, "Control socket (SOCK_SEQPACKET)")
      ->required()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--holder-fd", flags.holder_fd, "Connection to kapsule-holder")
      ->required()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--uid", flags.uid, "User to become")->required();
  app.add_option("--gid", flags.gid, "Group to become")->required();
  app.add_option("--keyprovider", flags.keyprovider, "Socket that unwraps layer keys")->required();
  app.add_option("--workers", flags.workers, "Threads that serve reads")
      ->check(CLI::Range(1u, kMaxWorkers));
  app.add_option("--io-threads", flags.engine.io_threads, "Threads that wait for the disk")
      ->check(CLI::Range(1, 64));
  app.add_option("--key-grace-ms", flags.key_grace_ms,
                 "How long reads wait for keys after a restart");
  app.add_option("--fetch-grace-ms", flags.fetch_grace_ms,
                 "How long reads from registries wait while there is no kapsule-fetch");
  app.add_option("--read-ahead-bytes", flags.engine.read_ahead_bytes,
                 "Memory for what streams will read");
  app.add_option("--chunk-cache-bytes", flags.engine.chunk_cache_bytes,
                 "Memory for chunks that were read");
  app.add_option("--index-cache-bytes", flags.engine.index_cache_bytes,
                 "Memory for pages of all layers' indexes");
  app.add_option("--log-level", flags.log_level, "trace, debug, info, warning or error");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  }
  absl::Status status = InitLog("kapsule-fuse", flags.log_level);
  if (status.ok()) status = BindSymbolsNow(argv);
  if (status.ok()) status = Run(flags, process_start);
  if (status.ok()) return 0;
  log::error("{}", Describe(status));
  return 1;
}

}  // namespace
}  // namespace kapsule::fuse

// Not by return: worker threads must not meet destructors.
int main(int argc, char** argv) { _exit(kapsule::fuse::Main(argc, argv)); }
