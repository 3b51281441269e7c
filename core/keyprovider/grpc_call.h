// What the services of grpc_server.cc share.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <optional>
#include <string>

#include "core/base/status.h"
#include "core/base/unix_socket.h"

namespace kapsule::keyprovider {

// Who stands behind gRPC's name of a connection ("fd:7").
using PeerLookup = std::function<std::optional<PeerCredentials>(const std::string& name)>;

// The codes of absl and gRPC have the same numbers.
inline grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), Message(status)};
}

inline grpc::Status UnknownPeer() {
  return {grpc::StatusCode::PERMISSION_DENIED, "a connection of an unknown peer"};
}

}  // namespace kapsule::keyprovider
