// A packet from kapsule-snapshotter: parsed, checked and answered without a crash.
#include <cstdlib>

#include "core/base/unix_socket.h"
#include "core/control/control_wire.h"
#include "core/control/fetch_control.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  if (size == 0 || size > kMaxPacket) return 0;
  static const control::SocketPair* const pair =
      new control::SocketPair(control::MakeSocketPair().value());
  const ByteSpan bytes(reinterpret_cast<const std::byte*>(data), size);
  if (!SendPacket(pair->ours.get(), bytes).ok()) std::abort();
  const auto request = control::ReceiveFetchRequest(pair->theirs.get());
  if (request.ok()) {
    const absl::Status status = control::CheckFetchRequest(request->message, request->fds.size());
    const auto answer = control::MakeFetchReply(request->message.id(), status);
    if (!control::SendFetchReply(pair->theirs.get(), answer).ok()) std::abort();
    const auto reply = control::ReceiveFetchReply(pair->ours.get());
    if (!reply.ok() || control::StatusOf(reply->message).code() != status.code()) std::abort();
  }
  return 0;
}
