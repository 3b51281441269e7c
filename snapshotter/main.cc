// kapsule-snapshotter: containerd's proxy snapshotter for encrypted models.
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <absl/cleanup/cleanup.h>

#include "core/base/heap.h"
#include "core/base/log.h"
#include "core/daemon/notify.h"
#include "plugin/differ/diff_service.h"
#include "snapshotter/command_line.h"
#include "snapshotter/cri_images.h"
#include "snapshotter/grpc_servers.h"
#include "snapshotter/layer_backend.h"
#include "snapshotter/metrics.h"
#include "snapshotter/model_layers.h"
#include "snapshotter/node_service.h"
#include "snapshotter/root_lock.h"
#include "snapshotter/snapshots_service.h"

namespace kapsule::snapshotter {
namespace {

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

// Meanwhile the health service "failover" tells whether kapsule-fuse can be succeeded.
int WaitForSignal(const sigset_t& signals, const ModelLayers& layers,
                  grpc::HealthCheckServiceInterface& health) {
  constexpr timespec kRound{1, 0};
  HeapTrimmer heap;
  for (;;) {
    health.SetServingStatus("failover", layers.failover());
    const int signal = sigtimedwait(&signals, nullptr, &kRound);
    if (signal > 0) return signal;
    heap.Trim();
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
                       config, known, daemon::PassedDescriptors(),
                       [&](const std::string& image) { return cri_images.Find(image); },
                       [&records = *store](int64_t id) {
                         return !absl::IsNotFound(records.GetById(id).status());
                       },
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
  daemon::NotifyReady();

  const int signal = WaitForSignal(signals, *layers, *server->GetHealthCheckService());
  std::move(leave).Cancel();
  daemon::NotifyStopping();
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
  KeepHeapSmall();
  const absl::StatusOr<Config> config = ParseCommandLine(argc, argv);
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
