#include "core/keyprovider/keys_service.h"

namespace kapsule::keyprovider {
namespace {

void LayerToProto(const UnwrappedLayer& layer, v1::UnwrapResponse& response) {
  const std::string_view key = layer.key.key.text(), nonce = layer.key.nonce.text();
  response.set_key(key.data(), key.size());
  response.set_nonce(nonce.data(), nonce.size());
  if (layer.index) response.set_index(layer.index->ToJson());
}

}  // namespace

grpc::Status KeysService::Unwrap(grpc::ServerContext* context, const v1::UnwrapRequest* request,
                                 v1::UnwrapResponse* response) {
  const std::optional<PeerCredentials> peer = peer_lookup_(context->peer());
  if (!peer) return UnknownPeer();
  const oci::Annotations annotations(request->annotations().begin(), request->annotations().end());
  const absl::StatusOr<UnwrappedLayer> layer = unwrapper_(annotations, *peer);
  if (!layer.ok()) return ToGrpc(layer.status());
  LayerToProto(*layer, *response);
  return grpc::Status::OK;
}

}  // namespace kapsule::keyprovider
