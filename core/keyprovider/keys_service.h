// kapsule.v1.Keys over an Unwrapper; for grpc_server.cc.
#pragma once

#include "core/keyprovider/grpc_call.h"
#include "core/keyprovider/grpc_server.h"
#include "kapsule/v1/keys.grpc.pb.h"

namespace kapsule::keyprovider {

class KeysService final : public v1::Keys::Service {
 public:
  KeysService(Unwrapper unwrapper, PeerLookup peer_lookup)
      : unwrapper_(std::move(unwrapper)), peer_lookup_(std::move(peer_lookup)) {}

  grpc::Status Unwrap(grpc::ServerContext* context, const v1::UnwrapRequest* request,
                      v1::UnwrapResponse* response) override;

 private:
  const Unwrapper unwrapper_;
  const PeerLookup peer_lookup_;
};

}  // namespace kapsule::keyprovider
