#include <grpcpp/grpcpp.h>
#include <sys/stat.h>

#include <filesystem>
#include <iterator>

#include <absl/time/clock.h>

#include "core/base/unix_socket.h"
#include "core/containerd/client.h"
#include "core/daemon/user.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "kapsule-ctl/doctor.h"

namespace kapsule::ctl {
namespace {

namespace fs = std::filesystem;

constexpr auto kPatience = std::chrono::seconds(5);

// gRPC's health check of one service. NotFound: the server does not know it.
absl::StatusOr<bool> Serves(const std::string& address, const std::string& service) {
  const auto channel = grpc::CreateChannel("unix://" + address, grpc::InsecureChannelCredentials());
  const auto stub = grpc::health::v1::Health::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kPatience);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  if (status.ok()) return response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return NotFound("{}", service);
  return Unavailable("{}: {}", address, status.error_message());
}

Finding Snapshotter(const NodeSettings& settings) {
  const absl::StatusOr<bool> serves = Serves(settings.address, "");
  if (!serves.ok())
    return Bad("no answer on " + settings.address,
               "start kapsule-snapshotter, or name its socket with --address");
  if (*serves) return Good("serves " + settings.address);
  return Bad("answers on " + settings.address + " that it does not serve",
             "its log says why (journalctl -u kapsule-snapshotter)");
}

Finding Failover(const NodeSettings& settings) {
  const absl::StatusOr<bool> serves = Serves(settings.address, "failover");
  if (serves.ok() && *serves)
    return Good("on: containers read on when kapsule-fuse is killed or upgraded");
  if (absl::IsNotFound(serves.status()) || serves.ok())
    return Warn("off: when kapsule-fuse dies, containers that read get errors",
                "restart kapsule-snapshotter when no container runs; its log says why");
  return Warn("not known: the snapshotter does not answer", "start kapsule-snapshotter");
}

Finding Keyprovider(const NodeSettings& settings) {
  const absl::StatusOr<UniqueFd> socket = ConnectUnix(settings.keyprovider_socket, SOCK_SEQPACKET);
  if (!socket.ok())
    return Bad(
        Message(socket.status()),
        "start kapsule-keyprovider; the snapshotter's keyprovider_socket must be its socket");
  const fs::path folder = fs::path(settings.keyprovider_socket).parent_path();
  std::error_code error;
  if (std::distance(fs::directory_iterator(folder, error), fs::directory_iterator()) > 1)
    return Warn(
        fmt::format("listens, but {} holds more than its socket: kapsule-fuse sees all of it",
                    folder.string()),
        "give the socket a folder of its own, such as /run/kapsule-keys");
  return Good("listens on " + settings.keyprovider_socket);
}

// The same error whether or not the key exists; only that of an unknown snapshotter
// is another one.
Finding Containerd(const NodeSettings& settings) {
  constexpr char kNoSnapshot[] = "kapsule-doctor: no snapshot has this name";
  containerd::Client client(settings.containerd_address);
  const absl::Status status = client.RemoveSnapshot(
      "default", settings.snapshotter_name, kNoSnapshot, absl::Now() + absl::FromChrono(kPatience));
  if (status.ok() || absl::IsNotFound(status))
    return Good(fmt::format("knows the snapshotter {}", settings.snapshotter_name));
  if (absl::IsUnavailable(status))
    return Bad("no answer on " + settings.containerd_address,
               "start containerd, or set containerd_address in the config");
  return Bad(Message(status),
             fmt::format("add [proxy_plugins.{}] with type = \"snapshot\" and address = \"{}\" to"
                         " containerd's config.toml, and restart it",
                         settings.snapshotter_name, settings.address));
}

Finding FuseUser(const NodeSettings& settings) {
  const absl::StatusOr<daemon::User> user = daemon::LookUpUser(settings.fuse_user);
  if (!user.ok())
    return Bad(Message(user.status()),
               fmt::format("useradd --system --no-create-home --shell /usr/sbin/nologin {}",
                           settings.fuse_user));
  if (user->uid == 0)
    return Bad(settings.fuse_user + " is root", "give kapsule-fuse a user of its own");
  return Good(fmt::format("{} is uid {}", settings.fuse_user, user->uid));
}

// Of the file system that `path` is on, or will be on.
absl::StatusOr<dev_t> DeviceOf(fs::path path) {
  struct stat st;
  while (stat(path.c_str(), &st) != 0) {
    if (errno != ENOENT || !path.has_relative_path()) return ErrnoStatus(errno, path.string());
    path = path.parent_path();
  }
  return st.st_dev;
}

Finding Stores(const NodeSettings& settings) {
  struct stat st;
  if (stat(settings.content_root.c_str(), &st) != 0)
    return Bad(Message(ErrnoStatus(errno, settings.content_root)),
               "set content_root to containerd's content store");
  const absl::StatusOr<dev_t> root = DeviceOf(settings.root);
  if (!root.ok())
    return Bad(Message(root.status()), "set root to a folder of the snapshotter's own");
  if (*root == st.st_dev) return Good("root and containerd's content store are on one file system");
  return Warn(
      "root and containerd's content store are on different file systems: what containerd"
      " collects lives only until the snapshotter ends",
      "put root on the file system of " + settings.content_root);
}

}  // namespace

std::vector<Check> NodeChecks() {
  return {{"fuse user", false, FuseUser},     {"keyprovider", true, Keyprovider},
          {"snapshotter", true, Snapshotter}, {"failover", true, Failover},
          {"containerd", true, Containerd},   {"stores", true, Stores}};
}

}  // namespace kapsule::ctl
