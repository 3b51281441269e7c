#include "core/base/unix_socket.h"
#include "core/keyprovider/wire_frames.h"

namespace kapsule::keyprovider {

absl::StatusOr<WireRequest> ReceiveRequest(int connection) {
  ASSIGN_OR_RETURN(const Packet packet, ReceivePacket(connection));
  ASSIGN_OR_RETURN(const uint32_t size, DecodeRequest(AsBytes(packet.bytes)));
  if (packet.fds.size() != 1)
    return InvalidArgument("a key request with {} descriptors, not one", packet.fds.size());
  ASSIGN_OR_RETURN(std::string json, ReadSealedMemfd(packet.fds[0].get(), kMaxAnnotationBytes));
  if (json.size() != size)
    return InvalidArgument("{} bytes of annotations where {} were announced", json.size(), size);
  return WireRequest{std::move(json)};
}

absl::Status SendReply(int connection, const absl::StatusOr<UnwrappedLayer>& result) {
  return SendPacket(connection, EncodeReply(result).bytes());
}

}  // namespace kapsule::keyprovider
