#include "core/keyprovider/ocicrypt_service.h"

#include <algorithm>
#include <iterator>

#include "core/base/bytes.h"
#include "core/base/json.h"

namespace kapsule::keyprovider {
namespace {

// More than any tool sends. The parser's time grows with the square of an
// object's members, each of which has a colon.
constexpr std::ptrdiff_t kMaxMembers = 1024;

// The bytes that a wrapping provider returned. Errors do not quote the request.
absl::StatusOr<std::string> PacketOf(const std::string& request) {
  if (request.size() > kMaxOcicryptRequest)
    return InvalidArgument("a request of {} bytes, more than {}", request.size(),
                           kMaxOcicryptRequest);
  if (std::count(request.begin(), request.end(), ':') > kMaxMembers)
    return InvalidArgument("a request of more than {} members", kMaxMembers);
  const absl::StatusOr<Json> json = ParseJson(request, kMaxOcicryptRequest);
  if (!json.ok() || StringMember(*json, "op").value_or("") != "keyunwrap")
    return InvalidArgument("not ocicrypt's request to unwrap a key");
  ASSIGN_OR_RETURN(const Json* params, ObjectMember(*json, "keyunwrapparams"));
  ASSIGN_OR_RETURN(const std::string annotation, StringMember(*params, "annotation"));
  absl::StatusOr<std::string> packet = DecodeBase64(annotation);
  if (!packet.ok()) return InvalidArgument("\"annotation\" is not base64");
  return packet;
}

// As an array of numbers, the only form that every ocicrypt reads.
void PutOptions(ByteSpan options, std::string& json) {
  json.reserve(options.size() * 4 + 64);  // no copies of secrets left behind
  json = "{\"keyunwrapresults\":{\"optsdata\":[";
  for (size_t i = 0; i < options.size(); ++i)
    fmt::format_to(std::back_inserter(json), "{}{}", i == 0 ? "" : ",",
                   std::to_integer<int>(options[i]));
  json += "]}}";
}

}  // namespace

grpc::Status OcicryptService::WrapKey(grpc::ServerContext*,
                                      const ::keyprovider::KeyWrapProtocolInput*,
                                      ::keyprovider::KeyWrapProtocolOutput*) {
  return {grpc::StatusCode::UNIMPLEMENTED,
          "this key provider only unwraps; encrypt by kapsule-ctl for the node's public key"};
}

grpc::Status OcicryptService::UnWrapKey(grpc::ServerContext* context,
                                        const ::keyprovider::KeyWrapProtocolInput* request,
                                        ::keyprovider::KeyWrapProtocolOutput* response) {
  const std::optional<PeerCredentials> peer = peer_lookup_(context->peer());
  if (!peer) return UnknownPeer();
  const absl::StatusOr<std::string> packet = PacketOf(request->json());
  if (!packet.ok()) return ToGrpc(packet.status());
  const absl::StatusOr<Secret> options = unwrapper_(*packet, *peer);
  if (!options.ok()) return ToGrpc(options.status());
  PutOptions(options->bytes(), *response->mutable_json());
  return grpc::Status::OK;
}

}  // namespace kapsule::keyprovider
