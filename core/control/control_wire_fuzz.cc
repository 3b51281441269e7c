// A packet from the other end, or a layer's record: parsed, checked and answered
// without a crash.
#include <cstdlib>

#include "core/base/unix_socket.h"
#include "core/control/control_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  if (size == 0 || size > kMaxPacket) return 0;
  static const control::SocketPair* const pair =
      new control::SocketPair(control::MakeSocketPair().value());
  const ByteSpan bytes(reinterpret_cast<const std::byte*>(data), size);
  static_cast<void>(control::RecordFromJson(AsText(bytes)));
  if (!SendPacket(pair->ours.get(), bytes).ok()) std::abort();
  const auto request = control::ReceiveRequest(pair->theirs.get());
  if (request.ok()) {
    const absl::Status status = control::CheckRequest(request->message, request->fds.size());
    if (!control::SendReply(pair->theirs.get(), control::MakeReply(request->message.id(), status))
             .ok())
      std::abort();
    const auto reply = control::ReceiveReply(pair->ours.get());
    if (!reply.ok() || control::StatusOf(*reply).code() != status.code()) std::abort();
  }
  return 0;
}
