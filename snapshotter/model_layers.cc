#include "snapshotter/model_layers.h"

#include <pwd.h>

#include <charconv>

#include "snapshotter/data_plane.h"
#include "snapshotter/layer_manager.h"

namespace kapsule::snapshotter {
namespace {

struct User {
  uid_t uid;
  gid_t gid;
};

// A name of the user database, or a number, whose group is then its own number.
absl::StatusOr<User> FindUser(const std::string& name) {
  std::vector<char> buffer(1 << 16);
  passwd entry;
  passwd* found = nullptr;
  const int error = getpwnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
  if (error != 0) return ErrnoStatus(error, "fuse_user " + name);
  if (found != nullptr) return User{found->pw_uid, found->pw_gid};
  uint32_t number = 0;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data(), end, number);
  if (name.empty() || parsed.ec != std::errc() || parsed.ptr != end || number == UINT32_MAX)
    return NotFound("fuse_user {}: no such user", name);
  return User{number, number};
}

}  // namespace

// Views are unmounted before kapsule-fuse ends, and the manager that its callbacks
// reach outlives it.
class ModelLayers::Impl {
 public:
  absl::Status Start(const Config& config, const std::vector<ModelLayer>& layers) {
    ASSIGN_OR_RETURN(const User user, FindUser(config.fuse_user));
    ASSIGN_OR_RETURN(manager_, LayerManager::Create(config, layers));
    LayerManager* const manager = manager_.get();
    ASSIGN_OR_RETURN(data_plane_,
                     DataPlane::Start({.views = config.root / "views",
                                       .program = config.fuse_program,
                                       .uid = user.uid,
                                       .gid = user.gid,
                                       .keyprovider_socket = config.keyprovider_socket,
                                       .log_level = config.log_level,
                                       .on_death = [manager] { manager->OnDeath(); },
                                       .on_restart = [manager] { manager->OnRestart(); }}));
    manager->Run(CallsTo(data_plane_.get()));
    return absl::OkStatus();
  }

  ~Impl() {
    if (manager_ != nullptr) manager_->Stop();
    data_plane_.reset();
  }

  LayerManager& manager() { return *manager_; }

 private:
  static DataPlaneCalls CallsTo(DataPlane* plane) {
    return {.open =
                [plane](const oci::Digest& digest, uint64_t size, bool encrypted, UniqueFd blob,
                        const oci::Annotations& annotations, absl::Time deadline) {
                  return plane->Open(digest, size, encrypted, std::move(blob), annotations,
                                     deadline);
                },
            .authorise =
                [plane](const oci::Digest& digest, const oci::Annotations& annotations,
                        absl::Time deadline) {
                  return plane->Authorise(digest, annotations, deadline);
                },
            .close = [plane](const oci::Digest& digest,
                             absl::Time deadline) { return plane->Close(digest, deadline); }};
  }

  std::unique_ptr<LayerManager> manager_;
  std::unique_ptr<DataPlane> data_plane_;
};

ModelLayers::ModelLayers(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ModelLayers::~ModelLayers() = default;

absl::StatusOr<std::unique_ptr<ModelLayers>> ModelLayers::Start(
    const Config& config, const std::vector<ModelLayer>& layers) {
  auto impl = std::make_unique<Impl>();
  RETURN_IF_ERROR(impl->Start(config, layers));
  return std::unique_ptr<ModelLayers>(new ModelLayers(std::move(impl)));
}

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
