// kapsule-fetch: reads blobs of layers from their registries, as reads need them,
// into a cache that kapsule-fuse reads. Started as root by kapsule-snapshotter;
// becomes a user without rights before it reads a byte of a request or an answer.
// It has the network and no key. Its system calls are not filtered: credential
// helpers and plugins are programs of others, which would be under the filter too.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <iostream>
#include <map>

#include "core/base/heap.h"
#include "core/base/log.h"
#include "core/daemon/rights.h"
#include "core/daemon/signals.h"
#include "snapshotter/fetch/fetch_server.h"
#include "snapshotter/fetch/registry_source.h"

namespace kapsule::fetch {
namespace {

struct Flags {
  int control_fd = -1;
  std::string cache;
  uint64_t read_timeout_ms = 60'000, lock_wait_ms = 10'000;
  FetcherOptions fetcher;
  uid_t uid = 0;
  gid_t gid = 0;
  std::string hosts_dir = "/etc/containerd/certs.d";
  std::vector<std::string> docker_configs, pull_secrets;
  std::string provider_config, provider_dir;
  std::string log_level = "info";
};

constexpr char kExample[] =
    "Example, as kapsule-snapshotter starts it with its socket as descriptor 3:\n"
    "  kapsule-fetch --control-fd 3 --uid 978 --gid 978 --cache /var/cache/kapsule/blobs\n"
    "      --cache-bytes 68719476736 --fill idle --hosts-dir /etc/containerd/certs.d\n"
    "      --pull-secrets /etc/kapsule/pull-secrets\n"
    "It ends on SIGTERM, and when its control socket is closed while no kapsule-fuse is\n"
    "connected. A second one with the same cache waits for the first to end.";

constexpr uint64_t kMinCacheBytes = 64 << 20;

// Each open blob has three descriptors, each connection to a registry one.
absl::Status PrepareProcess(const Flags& flags) {
  signal(SIGPIPE, SIG_IGN);
  if (fcntl(flags.control_fd, F_SETFD, FD_CLOEXEC) != 0)
    return ErrnoStatus(errno, fmt::format("--control-fd {}", flags.control_fd));
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  return absl::OkStatus();
}

absl::StatusOr<RegistryOptions> RegistryOptionsOf(const Flags& flags) {
  RegistryOptions options;
  options.hosts_dir = flags.hosts_dir;
  options.pull_secrets.assign(flags.pull_secrets.begin(), flags.pull_secrets.end());
  options.docker_configs.assign(flags.docker_configs.begin(), flags.docker_configs.end());
  if (flags.provider_config.empty()) return options;
  ASSIGN_OR_RETURN(options.plugins,
                   registry::ProviderPlugins::Load(
                       {.config_file = flags.provider_config, .program_dir = flags.provider_dir}));
  return options;
}

absl::Status Run(const Flags& flags) {
  ASSIGN_OR_RETURN(const daemon::SignalWaiter signals,
                   daemon::SignalWaiter::Block({SIGTERM, SIGINT}));
  RETURN_IF_ERROR(PrepareProcess(flags));
  // While it is root: kubelet's configuration may be root's alone.
  ASSIGN_OR_RETURN(RegistryOptions registries, RegistryOptionsOf(flags));
  ASSIGN_OR_RETURN(
      std::unique_ptr<CacheFolder> folder,
      CacheFolder::Open(flags.cache, flags.uid, flags.gid, absl::Milliseconds(flags.lock_wait_ms)));
  RETURN_IF_ERROR(daemon::GiveUpRights(flags.uid, flags.gid));

  // Never destroyed: threads that wait for a registry use them until _exit().
  auto* outbox = new Outbox;
  auto* sources = new RegistrySources(std::move(registries));
  auto* fetcher = new Fetcher(
      *folder.release(), flags.fetcher,
      [sources](const Origin& origin) { return sources->Open(origin); }, *outbox);
  RETURN_IF_ERROR(fetcher->Start());
  auto* server = new FetchServer(UniqueFd(flags.control_fd), *fetcher, *outbox);
  const absl::Status status = server->Run(signals.fd());
  fetcher->Stop();
  return status;
}

int Main(int argc, char** argv) {
  KeepHeapSmall();
  Flags flags;
  CLI::App app{"Fetches blobs of layers from registries on demand, for kapsule-fuse"};
  app.footer(kExample);
  app.add_option("--control-fd", flags.control_fd, "Control socket (SOCK_SEQPACKET)")
      ->required()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--cache", flags.cache, "Folder of the cache; made where it is missing")
      ->required();
  app.add_option("--cache-bytes", flags.fetcher.cache_bytes,
                 "What the cache may take on the disk, at least 64 MiB")
      ->check(CLI::Range(kMinCacheBytes, uint64_t{1} << 60));
  app.add_option("--uid", flags.uid, "User to become")->required();
  app.add_option("--gid", flags.gid, "Group to become")->required();
  app.add_option("--hosts-dir", flags.hosts_dir,
                 "containerd's folder of hosts.toml files; empty: none");
  app.add_option("--read-timeout-ms", flags.read_timeout_ms, "How long a read waits for its block")
      ->check(CLI::Range(uint64_t{100}, uint64_t{3'600'000}));
  const std::map<std::string, Fill> fills{
      {"off", Fill::kOff}, {"idle", Fill::kIdle}, {"eager", Fill::kEager}};
  app.add_option("--fill", flags.fetcher.fill,
                 "Fetch the rest of open blobs: off, idle (when nothing is wanted) or eager")
      ->transform(CLI::CheckedTransformer(fills).description("off, idle or eager"));
  app.add_option("--connections", flags.fetcher.connections, "Ranges that are fetched at once")
      ->check(CLI::Range(1u, 64u));
  app.add_option("--docker-config", flags.docker_configs,
                 "Docker's config.json, or a folder of <host>/config.json; more than once");
  app.add_option("--pull-secrets", flags.pull_secrets,
                 "File or folder of Kubernetes pull secrets; more than once");
  CLI::Option* const config = app.add_option("--credential-provider-config", flags.provider_config,
                                             "kubelet's CredentialProviderConfig");
  app.add_option("--credential-provider-bin-dir", flags.provider_dir, "Folder of its plugins")
      ->needs(config);
  app.add_option("--lock-wait-ms", flags.lock_wait_ms,
                 "How long to wait for another kapsule-fetch to leave the cache");
  app.add_option("--log-level", flags.log_level, "trace, debug, info, warning or error");
  app.set_version_flag("--version", "kapsule-fetch " KAPSULE_VERSION);
  CLI11_PARSE(app, argc, argv);

  flags.fetcher.read_timeout = absl::Milliseconds(flags.read_timeout_ms);
  absl::Status status = InitLog("kapsule-fetch", flags.log_level);
  if (status.ok()) status = Run(flags);
  if (status.ok()) return 0;
  log::error("{}", Describe(status));
  return 1;
}

}  // namespace
}  // namespace kapsule::fetch

// Not by return: threads that wait must not meet destructors.
int main(int argc, char** argv) {
  const int code = kapsule::fetch::Main(argc, argv);
  std::cout.flush();
  _exit(code);
}
