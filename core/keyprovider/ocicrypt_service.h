// ocicrypt's key provider protocol over a PacketUnwrapper; for grpc_server.cc.
#pragma once

#include "core/keyprovider/grpc_call.h"
#include "core/keyprovider/grpc_server.h"
#include "ocicrypt/keyprovider.grpc.pb.h"

namespace kapsule::keyprovider {

inline constexpr size_t kMaxOcicryptRequest = 1 << 20;

// Requests may hold the user's private keys: nothing of them is logged, quoted
// in an error or used, but for the annotation.
class OcicryptService final : public ::keyprovider::KeyProviderService::Service {
 public:
  OcicryptService(PacketUnwrapper unwrapper, PeerLookup peer_lookup)
      : unwrapper_(std::move(unwrapper)), peer_lookup_(std::move(peer_lookup)) {}

  grpc::Status WrapKey(grpc::ServerContext* context,
                       const ::keyprovider::KeyWrapProtocolInput* request,
                       ::keyprovider::KeyWrapProtocolOutput* response) override;
  grpc::Status UnWrapKey(grpc::ServerContext* context,
                         const ::keyprovider::KeyWrapProtocolInput* request,
                         ::keyprovider::KeyWrapProtocolOutput* response) override;

 private:
  const PacketUnwrapper unwrapper_;
  const PeerLookup peer_lookup_;
};

}  // namespace kapsule::keyprovider
