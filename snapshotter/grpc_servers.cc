#include "snapshotter/grpc_servers.h"

#include <grpcpp/health_check_service_interface.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <vector>

#include "core/base/file.h"
#include "core/base/unix_socket.h"

namespace kapsule::snapshotter {
namespace {

constexpr int kMaxMessageBytes = 16 << 20;

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

}  // namespace

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
  // So many wait for the next calls, some seconds: in a burst a thread would otherwise be
  // made for nearly every call (bench/tools/prepare_storm takes a quarter longer with 8).
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 64);
  return Listen(builder, address);
}

absl::StatusOr<std::unique_ptr<grpc::Server>> ServeCri(const std::filesystem::path& address,
                                                       CriImages& images) {
  if (address.empty()) return nullptr;
  grpc::ServerBuilder builder;
  builder.RegisterCallbackGenericService(&images);
  return Listen(builder, address);
}

}  // namespace kapsule::snapshotter
