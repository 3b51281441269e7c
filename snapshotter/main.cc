// kapsule-snapshotter: containerd's proxy snapshotter for encrypted models.
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <absl/cleanup/cleanup.h>

#include <CLI/CLI.hpp>

#include "core/base/log.h"
#include "core/base/unix_socket.h"
#include "plugin/differ/diff_service.h"
#include "snapshotter/config.h"
#include "snapshotter/cri_images.h"
#include "snapshotter/layer_backend.h"
#include "snapshotter/metrics.h"
#include "snapshotter/model_layers.h"
#include "snapshotter/node_service.h"
#include "snapshotter/root_lock.h"
#include "snapshotter/snapshots_service.h"

namespace kapsule::snapshotter {
namespace {

constexpr char kExamples[] = R"(Examples:
  kapsule-snapshotter --config /etc/kapsule/snapshotter.toml
  kapsule-snapshotter --root /var/lib/kapsule --address /run/kapsule/snapshotter.sock

containerd's config.toml then has:
  [proxy_plugins.kapsule]
    type = "snapshot"
    address = "/run/kapsule/snapshotter.sock"

and from containerd 1.7.4 on, not before, for clients that send no labels:
  [proxy_plugins.kapsule-diff]
    type = "diff"
    address = "/run/kapsule/snapshotter.sock"
  [plugins."io.containerd.service.v1.diff-service"]
    default = ["kapsule-diff", "walking"]

Several instances run side by side, each with its own --root and --address.)";

constexpr int kMaxMessageBytes = 16 << 20;
constexpr auto kShutdownGrace = std::chrono::seconds(2);

// Snapshotter's view of ModelLayers.
class Backend final : public LayerBackend {
 public:
  explicit Backend(ModelLayers& layers) : layers_(layers) {}
  absl::Status PreRegister(const std::string& ns, const oci::Digest& chain_id) override {
    return layers_.PreRegister(ns, chain_id);
  }
  void Add(const ModelLayer& layer) override { layers_.Add(layer); }
  absl::Status Await(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                     absl::Time deadline) override {
    return layers_.Await(key, chain, deadline);
  }
  void Remove(const ModelLayer& layer) override { layers_.Remove(layer); }

 private:
  ModelLayers& layers_;
};

// Options write into `config`; those that are not given leave it alone.
class CommandLine {
 public:
  CommandLine() {
    app_.add_option("--config", file_, "Read this TOML file; options below override it")
        ->type_name("FILE");
    Path("--root", config_.root, "Where snapshots and their metadata are kept");
    Path("--address", config_.address, "The unix socket to serve containerd on");
    Path("--containerd-address", config_.containerd_address, "containerd's own unix socket");
    Path("--content-root", config_.content_root, "containerd's content store");
    Path("--keyprovider", config_.keyprovider_socket, "The keyprovider's unix socket");
    Path("--fuse-program", config_.fuse_program, "kapsule-fuse, if not beside this program");
    app_.add_option("--fuse-user", config_.fuse_user, "The user that kapsule-fuse runs as")
        ->type_name("NAME|UID");
    Path("--fetch-program", config_.fetch_program, "kapsule-fetch, if not beside this program");
    app_.add_option("--fetch-user", config_.fetch_user, "The user that kapsule-fetch runs as")
        ->type_name("NAME|UID");
    Path("--fetch-cache", config_.fetch_cache, "Where it keeps what it read from registries");
    app_.add_option("--view-mount", config_.view_mount, "How views are mounted: auto, file or loop")
        ->type_name("WAY");
    app_.add_option("--metrics-address", config_.metrics_address,
                    "Serve /metrics and /healthz there: 127.0.0.1:PORT, or a unix socket's path")
        ->type_name("ADDRESS");
    app_.add_option("--name", config_.snapshotter_name, "The name in containerd's proxy_plugins")
        ->type_name("NAME");
    app_.add_option("--log-level", config_.log_level, "trace, debug, info, warning or error")
        ->type_name("LEVEL");
    app_.set_version_flag("--version", "kapsule-snapshotter " KAPSULE_VERSION);
    app_.footer(kExamples);
  }

  // Exits after --help, --version and wrong usage.
  absl::StatusOr<Config> Parse(int argc, char** argv) {
    ParseOnce(argc, argv);
    if (!file_.empty()) {
      ASSIGN_OR_RETURN(config_, LoadConfig(file_));
      ParseOnce(argc, argv);
    }
    RETURN_IF_ERROR(CheckConfig(config_));
    return config_;
  }

 private:
  void Path(const char* name, std::filesystem::path& path, const char* what) {
    app_.add_option_function<std::string>(
            name, [&path](const std::string& text) { path = text; }, what)
        ->type_name("PATH");
  }
  void ParseOnce(int argc, char** argv) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      exit(app_.exit(error) == 0 ? 0 : 2);
    }
  }

  CLI::App app_{
      "Serves containerd snapshots: ordinary layers as overlayfs, and the layers of"
      " encrypted models mounted and decrypted on demand."};
  Config config_;
  std::string file_;
};

absl::StatusOr<std::unique_ptr<grpc::Server>> Listen(grpc::ServerBuilder& builder,
                                                     const std::filesystem::path& address) {
  RETURN_IF_ERROR(MakeDirs(address.parent_path(), 0755));
  // gRPC would take the socket of a running process away without a word.
  if (ConnectUnix(address, SOCK_STREAM).ok())
    return AlreadyExists("another process listens on {}: give this one an --address of its own",
                         address.string());
  int bound = 0;
  builder.AddListeningPort("unix:" + address.string(), grpc::InsecureServerCredentials(), &bound);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || bound == 0) return Unavailable("cannot listen on {}", address.string());
  if (chmod(address.c_str(), 0600) != 0) return ErrnoStatus(errno, "chmod " + address.string());
  return server;
}

absl::StatusOr<std::unique_ptr<grpc::Server>> Serve(const std::filesystem::path& address,
                                                    grpc::Service& snapshots, grpc::Service& differ,
                                                    grpc::Service& node, RpcEnded rpc_ended) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> timers;
  timers.push_back(TimeRpcs(std::move(rpc_ended)));
  builder.experimental().SetInterceptorCreators(std::move(timers));
  builder.RegisterService(&snapshots);
  builder.RegisterService(&differ);
  builder.RegisterService(&node);
  // A Prepare waits for calls that it causes itself, so threads are not bounded.
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 2);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 8);
  return Listen(builder, address);
}

// Null where the configuration wants none.
absl::StatusOr<std::unique_ptr<grpc::Server>> ServeCri(const std::filesystem::path& address,
                                                       CriImages& images) {
  if (address.empty()) return nullptr;
  grpc::ServerBuilder builder;
  builder.RegisterCallbackGenericService(&images);
  return Listen(builder, address);
}

differ::SnapshotCalls CallsTo(Snapshotter& snapshotter) {
  return {.claim =
              [&](const std::string& directory, const oci::LayerLabel& label) {
                return snapshotter.ClaimLayer(directory, label);
              },
          .any_encrypted =
              [&](const std::vector<std::string>& directories) {
                return snapshotter.AnyEncrypted(directories);
              }};
}

// Null where the configuration wants none. `metrics`, `layers` and `snapshotter` outlive it.
absl::StatusOr<std::unique_ptr<HttpListener>> ServeMetricsOf(const Config& config,
                                                             const Metrics& metrics,
                                                             const ModelLayers& layers,
                                                             Snapshotter& snapshotter) {
  if (config.metrics_address.empty()) return nullptr;
  ASSIGN_OR_RETURN(const ListenAddress address,
                   ParseListenAddress(config.metrics_address, config.metrics_allow_remote));
  absl::StatusOr<std::unique_ptr<HttpListener>> listener =
      ServeMetrics(address, metrics,
                   {.data_plane = [&layers] { return layers.status(); },
                    .layers = [&layers] { return layers.LayerStates(); },
                    .fetch = [&layers](absl::Time deadline) { return layers.FetchStats(deadline); },
                    .fetch_pid = [&layers] { return layers.fetch_pid(); },
                    .snapshots = [&snapshotter] { return snapshotter.CountByKind(); },
                    .write_metadata = [&snapshotter] { return snapshotter.TryWrite(); }});
  if (!listener.ok())
    return Annotate(listener.status(), "metrics_address " + config.metrics_address);
  log::info("metrics at {}", config.metrics_address);
  return listener;
}

// One that stands beside this one where the configuration does not say.
void FindProgram(std::filesystem::path& program, const char* name) {
  if (!program.empty()) return;
  std::error_code error;
  program = std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / name;
}

// Every open layer has a descriptor here or there; kapsule-fuse inherits the limit.
void AllowManyFiles() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// What the service manager kept for kapsule-holder while nothing of this service ran.
std::vector<int> StoredDescriptors() {
  std::vector<int> fds;
  const int count = sd_listen_fds(0);
  for (int i = 0; i < count; ++i) fds.push_back(SD_LISTEN_FDS_START + i);
  return fds;
}

// Meanwhile the health service "failover" tells whether kapsule-fuse can be succeeded.
int WaitForSignal(const sigset_t& signals, const ModelLayers& layers,
                  grpc::HealthCheckServiceInterface& health) {
  constexpr timespec kRound{1, 0};
  for (;;) {
    health.SetServingStatus("failover", layers.failover());
    const int signal = sigtimedwait(&signals, nullptr, &kRound);
    if (signal > 0) return signal;
  }
}

absl::Status Run(Config config, const sigset_t& signals) {
  if (geteuid() != 0)
    return PermissionDenied("mounting takes root: run kapsule-snapshotter as root");
  FindProgram(config.fuse_program, "kapsule-fuse");
  FindProgram(config.fetch_program, "kapsule-fetch");
  ASSIGN_OR_RETURN(const RootLock lock, RootLock::Take(config.root));
  ASSIGN_OR_RETURN(std::unique_ptr<MetadataStore> store,
                   MetadataStore::Open(config.root / "metadata.db"));
  ASSIGN_OR_RETURN(const std::vector<ModelLayer> known, store->ListLayers());
  Metrics metrics;
  CriImages cri_images(config.containerd_address);
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelLayers> layers,
                   ModelLayers::Start(
                       config, known, StoredDescriptors(),
                       [&](const std::string& image) { return cri_images.Find(image); },
                       metrics.layer_events()));
  // What is mounted is in use: a start that fails must not end it.
  absl::Cleanup leave = [&] {
    if (layers->AnyMounted()) layers->Leave();
  };
  Backend backend(*layers);
  ASSIGN_OR_RETURN(const std::unique_ptr<Snapshotter> snapshotter,
                   Snapshotter::Open(config.root, std::move(store), backend,
                                     absl::Milliseconds(config.open_timeout_ms)));
  SnapshotsService snapshots(*snapshotter);
  differ::DiffService differ(CallsTo(*snapshotter));
  NodeService node([&] { return layers->status(); }, [&] { return layers->Upgrade(); });
  ASSIGN_OR_RETURN(const std::unique_ptr<grpc::Server> server,
                   Serve(config.address, snapshots, differ, node, metrics.rpc_ended()));
  ASSIGN_OR_RETURN(const std::unique_ptr<grpc::Server> cri,
                   ServeCri(config.cri_image_socket, cri_images));
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpListener> http,
                   ServeMetricsOf(config, metrics, *layers, *snapshotter));
  server->GetHealthCheckService()->SetServingStatus(true);
  log::info("{} serves {} with root {}", KAPSULE_VERSION, config.address.string(),
            config.root.string());
  sd_notify(0, "READY=1");

  const int signal = WaitForSignal(signals, *layers, *server->GetHealthCheckService());
  std::move(leave).Cancel();
  sd_notify(0, "STOPPING=1");
  if (signal == SIGTERM && layers->AnyMounted()) {
    log::info(
        "stopping; kapsule-fuse and the mounted layers stay for the next start (SIGINT ends them)");
    layers->Leave();
  } else {
    log::info("stopping, with kapsule-fuse and all mounts: {}",
              signal == SIGTERM ? "no layer is mounted" : strsignal(signal));
  }
  if (cri != nullptr) cri->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
  server->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
  server->Wait();
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CommandLine command_line;
  const absl::StatusOr<Config> config = command_line.Parse(argc, argv);
  absl::Status status = config.status();
  if (status.ok()) status = InitLog("kapsule-snapshotter", config->log_level);
  if (!status.ok()) {
    fmt::print(stderr, "kapsule-snapshotter: {}\n", Message(status));
    return 2;
  }
  // Before any thread, so that all of them leave these to sigwait().
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  umask(0022);
  AllowManyFiles();
  status = Run(*config, signals);
  if (status.ok()) return 0;
  log::error("{}", Message(status));
  return 1;
}

}  // namespace
}  // namespace kapsule::snapshotter

int main(int argc, char** argv) { return kapsule::snapshotter::Main(argc, argv); }
