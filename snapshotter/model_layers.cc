#include "snapshotter/model_layers.h"

#include <pwd.h>

#include <charconv>

#include "snapshotter/blob_fetcher.h"
#include "snapshotter/data_plane.h"
#include "snapshotter/layer_manager.h"

namespace kapsule::snapshotter {
namespace {

// Until what was asked for in time is done, or given up.
constexpr absl::Duration kSettleTime = absl::Seconds(5);
constexpr absl::Duration kHandOverTime = absl::Seconds(5);

struct User {
  uid_t uid;
  gid_t gid;
};

// A name of the user database, or a number, whose group is then its own number.
absl::StatusOr<User> FindUser(const std::string& setting, const std::string& name) {
  std::vector<char> buffer(1 << 16);
  passwd entry;
  passwd* found = nullptr;
  const int error = getpwnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
  if (error != 0) return ErrnoStatus(error, setting + " " + name);
  if (found != nullptr) return User{found->pw_uid, found->pw_gid};
  uint32_t number = 0;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data(), end, number);
  if (name.empty() || parsed.ec != std::errc() || parsed.ptr != end || number == UINT32_MAX)
    return NotFound("{} {}: no such user", setting, name);
  return User{number, number};
}

std::vector<std::string> FlagsOf(const Config& config) {
  std::vector<std::string> flags;
  const auto add = [&flags](const char* flag, int64_t number) {
    flags.insert(flags.end(), {flag, std::to_string(number)});
  };
  if (config.workers != 0) add("--workers", config.workers);
  add("--io-threads", config.io_threads);
  add("--read-ahead-bytes", config.read_ahead_bytes);
  add("--chunk-cache-bytes", config.chunk_cache_bytes);
  add("--index-cache-bytes", config.index_cache_bytes);
  add("--key-grace-ms", config.key_grace_ms);
  add("--fetch-grace-ms", config.fetch_grace_ms);
  return flags;
}

std::vector<std::string> FetchArguments(const Config& config, const User& user) {
  std::vector<std::string> arguments = {"--cache",
                                        config.fetch_cache,
                                        "--cache-bytes",
                                        std::to_string(config.fetch_cache_bytes),
                                        "--uid",
                                        std::to_string(user.uid),
                                        "--gid",
                                        std::to_string(user.gid),
                                        "--fill",
                                        config.fetch_fill,
                                        "--connections",
                                        std::to_string(config.fetch_connections),
                                        "--read-timeout-ms",
                                        std::to_string(config.fetch_timeout_ms),
                                        "--hosts-dir",
                                        config.hosts_dir,
                                        "--log-level",
                                        config.log_level};
  const auto add = [&arguments](const char* flag, const std::string& value) {
    if (!value.empty()) arguments.insert(arguments.end(), {flag, value});
  };
  add("--credential-provider-config", config.credential_provider_config);
  add("--credential-provider-bin-dir", config.credential_provider_bin_dir);
  for (const std::string& path : config.pull_secrets) add("--pull-secrets", path);
  for (const std::string& path : config.docker_configs) add("--docker-config", path);
  return arguments;
}

}  // namespace

// The manager outlives the data plane, whose callbacks reach it.
class ModelLayers::Impl {
 public:
  absl::Status Start(const Config& config, const std::vector<ModelLayer>& layers,
                     std::vector<int> stored_fds, FindCredentials credentials,
                     LayerTable::IsRecorded is_recorded, LayerEvents events) {
    ASSIGN_OR_RETURN(const User user, FindUser("fuse_user", config.fuse_user));
    ASSIGN_OR_RETURN(const User fetch_user, FindUser("fetch_user", config.fetch_user));
    ASSIGN_OR_RETURN(manager_, LayerManager::Create(config, layers, std::move(is_recorded)));
    LayerManager* const manager = manager_.get();
    ASSIGN_OR_RETURN(
        data_plane_,
        DataPlane::Start({.views = config.root / "views",
                          .program = config.fuse_program,
                          .holder_program = config.fuse_program.parent_path() / "kapsule-holder",
                          .holder_socket = config.root / "holder.sock",
                          .uid = user.uid,
                          .gid = user.gid,
                          .keyprovider_socket = config.keyprovider_socket,
                          .log_level = config.log_level,
                          .flags = FlagsOf(config),
                          .stored_fds = std::move(stored_fds),
                          .prepare_timeout = absl::Milliseconds(config.upgrade_timeout_ms),
                          .stuck_after = config.stuck_after_ms == 0
                                             ? absl::InfiniteDuration()
                                             : absl::Milliseconds(config.stuck_after_ms),
                          .abandon_after = config.abandon_after_ms == 0
                                               ? absl::InfiniteDuration()
                                               : absl::Milliseconds(config.abandon_after_ms),
                          .settle_after = absl::Milliseconds(config.open_timeout_ms) + kSettleTime,
                          .on_death = [manager] { manager->OnDeath(); },
                          .on_restart = [this] { OnRestart(); },
                          .on_takeover = [this] { OnTakeover(); },
                          .on_settled =
                              [manager](const std::vector<std::string>& views) {
                                manager->CloseUnneeded(views);
                              }}));
    if (data_plane_->adopted()) manager_->Adopt(*data_plane_->adopted());
    DataPlane* const plane = data_plane_.get();
    auto fetcher = std::make_unique<BlobFetcher>(BlobFetcher::Options{
        .program = config.fetch_program,
        .arguments = FetchArguments(config, fetch_user),
        .pid_file = config.root / "fetch.pid",
        .hand_over =
            [plane](const UniqueFd& socket) {
              return plane->UseFetcher(socket, absl::Now() + kHandOverTime);
            },
        .blobs = {.credentials = std::move(credentials),
                  .use_file = [plane](const oci::Digest& digest, const UniqueFd& blob) {
                    return plane->UseFile(digest, blob, absl::Now() + kHandOverTime);
                  }}});
    manager->Run(CallsTo(plane), CallsTo(fetcher.get()), std::move(events));
    const absl::MutexLock lock(&mu_);
    fetcher_ = std::move(fetcher);
    return absl::OkStatus();
  }

  // The data plane first: an unmount waits for reads that nobody answers.
  ~Impl() {
    if (data_plane_ != nullptr && !left_) data_plane_->Stop();
    if (manager_ != nullptr) manager_->Stop();
    std::unique_ptr<BlobFetcher> fetcher;  // waited for without the lock
    {
      const absl::MutexLock lock(&mu_);
      fetcher.swap(fetcher_);
    }
    fetcher.reset();
    data_plane_.reset();
  }

  void Leave() {
    left_ = true;
    manager_->Leave();
    fetcher_->Leave();
    data_plane_->Leave();
  }
  DataPlaneStatus status() const {
    DataPlaneStatus status = data_plane_->status();
    status.view_mount = manager_->view_mount();
    return status;
  }
  bool failover() const { return data_plane_->failover(); }
  absl::Status Upgrade() { return data_plane_->Upgrade(); }

  LayerManager& manager() { return *manager_; }
  BlobFetcher& fetcher() { return *fetcher_; }  // once started

 private:
  static DataPlaneCalls CallsTo(DataPlane* plane) {
    return {.open =
                [plane](const oci::Digest& digest, uint64_t size, bool encrypted, UniqueFd blob,
                        const oci::Annotations& annotations, absl::Time deadline, bool remote) {
                  return plane->Open(digest, size, encrypted, std::move(blob), annotations,
                                     deadline, remote);
                },
            .authorise =
                [plane](const oci::Digest& digest, const oci::Annotations& annotations,
                        absl::Time deadline) {
                  return plane->Authorise(digest, annotations, deadline);
                },
            .close = [plane](const oci::Digest& digest,
                             absl::Time deadline) { return plane->Close(digest, deadline); },
            .use_local =
                [plane](const oci::Digest& digest, const UniqueFd& blob, absl::Time deadline) {
                  return plane->UseLocal(digest, blob, deadline);
                }};
  }
  static FetchCalls CallsTo(BlobFetcher* fetcher) {
    return {.open = [fetcher](const RemoteBlob& blob,
                              absl::Time deadline) { return fetcher->Open(blob, deadline); },
            .close = [fetcher](const oci::Digest& digest) { fetcher->Close(digest); },
            .forget = [fetcher](const oci::Digest& digest) { fetcher->Forget(digest); }};
  }

  // From the data plane's thread, perhaps before there is a fetcher.
  void OnRestart() {
    manager_->OnRestart();
    const absl::MutexLock lock(&mu_);
    if (fetcher_ != nullptr) fetcher_->HandOverAgain();
  }
  void OnTakeover() {
    manager_->OnTakeover();
    const absl::MutexLock lock(&mu_);
    if (fetcher_ != nullptr) fetcher_->GiveFilesAgain();
  }

  bool left_ = false;
  std::unique_ptr<LayerManager> manager_;
  std::unique_ptr<DataPlane> data_plane_;
  absl::Mutex mu_;  // of fetcher_'s making and end
  std::unique_ptr<BlobFetcher> fetcher_;
};

ModelLayers::ModelLayers(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ModelLayers::~ModelLayers() = default;

absl::StatusOr<std::unique_ptr<ModelLayers>> ModelLayers::Start(
    const Config& config, const std::vector<ModelLayer>& layers, std::vector<int> stored_fds,
    FindCredentials credentials, std::function<bool(int64_t id)> is_recorded, LayerEvents events) {
  auto impl = std::make_unique<Impl>();
  RETURN_IF_ERROR(impl->Start(config, layers, std::move(stored_fds), std::move(credentials),
                              std::move(is_recorded), std::move(events)));
  return std::unique_ptr<ModelLayers>(new ModelLayers(std::move(impl)));
}

void ModelLayers::Leave() { impl_->Leave(); }
bool ModelLayers::AnyMounted() const { return impl_->manager().AnyMounted(); }
DataPlaneStatus ModelLayers::status() const { return impl_->status(); }
bool ModelLayers::failover() const { return impl_->failover(); }
std::map<std::string, size_t> ModelLayers::LayerStates() const {
  return impl_->manager().LayerStates();
}
absl::StatusOr<v1::FetchStats> ModelLayers::FetchStats(absl::Time deadline) const {
  return impl_->fetcher().Stats(deadline);
}
pid_t ModelLayers::fetch_pid() const { return impl_->fetcher().pid(); }
absl::Status ModelLayers::Upgrade() { return impl_->Upgrade(); }

absl::Status ModelLayers::PreRegister(const std::string& ns, const oci::Digest& chain_id) {
  return impl_->manager().PreRegister(ns, chain_id);
}

void ModelLayers::Add(const ModelLayer& layer) { impl_->manager().Add(layer); }

absl::Status ModelLayers::Await(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                                absl::Time deadline) {
  return impl_->manager().Await(key, chain, deadline);
}

void ModelLayers::Remove(const ModelLayer& layer) { impl_->manager().Remove(layer); }

}  // namespace kapsule::snapshotter
