#include "core/keyprovider/grpc_server.h"

#include <absl/synchronization/mutex.h>
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_posix.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>

#include "core/keyprovider/keys_service.h"
#include "core/keyprovider/ocicrypt_service.h"

namespace kapsule::keyprovider {
namespace {

constexpr size_t kMaxConnections = 64;
constexpr std::ptrdiff_t kMaxOfOneUid = 32;
constexpr int kMaxThreads = 16;
constexpr int kIdleMs = 10'000;
constexpr int kMaxMessage = kMaxAnnotationBytes + 64 * 1024;

struct Connection {
  PeerCredentials peer;
  UniqueFd watch;  // a duplicate that shows when either side has hung up
};

bool IsOpen(const Connection& connection) {
  pollfd state{connection.watch.get(), 0, 0};
  return poll(&state, 1, 0) == 0;
}

}  // namespace

struct GrpcServer::State {
  State(Unwrapper unwrapper, PacketUnwrapper packet_unwrapper)
      : keys(std::move(unwrapper), [this](const std::string& name) { return PeerOf(name); }),
        ocicrypt(std::move(packet_unwrapper),
                 [this](const std::string& name) { return PeerOf(name); }) {}

  std::optional<PeerCredentials> PeerOf(const std::string& name) ABSL_LOCKS_EXCLUDED(mu) {
    absl::MutexLock lock(&mu);
    const auto found = connections.find(name);
    if (found == connections.end()) return std::nullopt;
    return found->second.peer;
  }

  KeysService keys;
  OcicryptService ocicrypt;
  std::unique_ptr<grpc::Server> server;

  absl::Mutex mu;
  // By gRPC's name for them. A name that comes again is of a new connection; a
  // late call of the old one is then judged as the new peer's, and its answer
  // goes nowhere.
  std::map<std::string, Connection> connections ABSL_GUARDED_BY(mu);
};

GrpcServer::GrpcServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(Unwrapper unwrapper,
                                                              PacketUnwrapper packet_unwrapper) {
  auto state = std::make_unique<State>(std::move(unwrapper), std::move(packet_unwrapper));
  grpc::ServerBuilder builder;
  builder.RegisterService(&state->keys);
  builder.RegisterService(&state->ocicrypt);
  builder.SetMaxReceiveMessageSize(kMaxMessage);
  builder.SetResourceQuota(grpc::ResourceQuota().SetMaxThreads(kMaxThreads));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleMs);
  state->server = builder.BuildAndStart();
  if (state->server == nullptr) return Internal("gRPC did not start");
  return std::unique_ptr<GrpcServer>(new GrpcServer(std::move(state)));
}

GrpcServer::~GrpcServer() {
  state_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
  state_->server->Wait();
}

absl::Status GrpcServer::Adopt(UniqueFd connection, const PeerCredentials& peer) {
  if (fcntl(connection.get(), F_SETFL, O_NONBLOCK) != 0)
    return ErrnoStatus(errno, "make a connection non-blocking");
  ASSIGN_OR_RETURN(UniqueFd watch, connection.Duplicate());
  const std::string name = fmt::format("fd:{}", connection.get());
  {
    absl::MutexLock lock(&state_->mu);
    std::erase_if(state_->connections, [](const auto& entry) { return !IsOpen(entry.second); });
    if (state_->connections.size() >= kMaxConnections)
      return ResourceExhausted("{} connections are open", kMaxConnections);
    if (std::count_if(state_->connections.begin(), state_->connections.end(),
                      [&](const auto& entry) { return entry.second.peer.uid == peer.uid; }) >=
        kMaxOfOneUid)
      return ResourceExhausted("{} connections of this user are open", kMaxOfOneUid);
    state_->connections.insert_or_assign(name, Connection{peer, std::move(watch)});
  }
  grpc::AddInsecureChannelFromFd(state_->server.get(), connection.release());
  return absl::OkStatus();
}

}  // namespace kapsule::keyprovider
