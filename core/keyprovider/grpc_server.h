// The gRPC side of the key provider: kapsule.v1.Keys, and ocicrypt's own protocol
// for stock tools, for peers that are known.
#pragma once

#include <functional>
#include <memory>

#include "core/base/secret.h"
#include "core/base/unix_socket.h"
#include "core/keyprovider/wire.h"

namespace kapsule::keyprovider {

// Judges the peer and unwraps. Called by several threads at once.
using Unwrapper = std::function<absl::StatusOr<UnwrappedLayer>(const oci::Annotations& annotations,
                                                               const PeerCredentials& peer)>;

// The same for the private options themselves, from one wrapped key.
using PacketUnwrapper =
    std::function<absl::StatusOr<Secret>(std::string_view packet, const PeerCredentials& peer)>;

// Serves both on connections that others accepted: gRPC itself does
// not tell who its peer is. Idle connections are closed after 10 s. Thread-safe.
//
// Copies of a layer key stay in gRPC's buffers for a while, which the frames of
// wire.h avoid.
class GrpcServer {
 public:
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(Unwrapper unwrapper,
                                                           PacketUnwrapper packet_unwrapper);
  // Ends all connections and waits for running calls.
  ~GrpcServer();

  // ResourceExhausted: 64 connections are open, or 32 of this user, so that no
  // user shuts out the others; this one is closed.
  absl::Status Adopt(UniqueFd connection, const PeerCredentials& peer);

 private:
  struct State;
  explicit GrpcServer(std::unique_ptr<State> state);
  const std::unique_ptr<State> state_;
};

}  // namespace kapsule::keyprovider
