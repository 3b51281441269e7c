#include "core/control/fetch_control.h"

#include "core/base/printable.h"
#include "core/base/unix_socket.h"
#include "core/control/control_wire.h"

namespace kapsule::control {
namespace {

absl::Status CheckHex(const char* what, std::string_view text) {
  const bool hex = text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  if (text.size() != 64 || !hex) return InvalidArgument("a {} that is not 64 hex digits", what);
  return absl::OkStatus();
}

absl::Status CheckOpen(const v1::FetchOpen& open) {
  RETURN_IF_ERROR(CheckHex("digest", open.digest()));
  RETURN_IF_ERROR(CheckHex("root", open.index().root()));
  if (open.size() == 0) return InvalidArgument("a blob of 0 bytes");
  if (open.timeout_ms() == 0) return InvalidArgument("a timeout of 0");
  if (open.sources_size() == 0) return InvalidArgument("a blob without sources");
  if (open.sources_size() > kMaxFetchSources || open.credentials_size() > kMaxFetchSources)
    return InvalidArgument("more than {} sources or credentials", kMaxFetchSources);
  for (const v1::FetchCredentials& credentials : open.credentials())
    if (credentials.place().empty()) return InvalidArgument("credentials without a place");
  return absl::OkStatus();
}

absl::StatusOr<size_t> CheckBody(const v1::FetchRequest& request) {
  switch (request.request_case()) {
    case v1::FetchRequest::kOpen:
      RETURN_IF_ERROR(CheckOpen(request.open()));
      return 0;
    case v1::FetchRequest::kClose:
      RETURN_IF_ERROR(CheckHex("digest", request.close().digest()));
      return 0;
    case v1::FetchRequest::kForget:
      RETURN_IF_ERROR(CheckHex("digest", request.forget().digest()));
      return 0;
    case v1::FetchRequest::kConnect:
      return 1;
    case v1::FetchRequest::kGetStats:
      return 0;
    case v1::FetchRequest::REQUEST_NOT_SET:
      break;
  }
  return InvalidArgument("no request that this version knows");
}

template <typename Message>
absl::Status Send(int socket, const Message& message, const std::vector<int>& fds) {
  std::string bytes;
  if (!message.SerializeToString(&bytes) || bytes.size() > kMaxFetchMessageBytes)
    return InvalidArgument("a fetch message of {} bytes, more than the limit of {}", bytes.size(),
                           kMaxFetchMessageBytes);
  return SendPacket(socket, AsBytes(bytes), fds);
}

// A ReceivedFetchRequest or ReceivedFetchReply.
template <typename Received>
absl::StatusOr<Received> Receive(int socket) {
  ASSIGN_OR_RETURN(Packet packet, ReceivePacket(socket));
  if (packet.bytes.size() > kMaxFetchMessageBytes)
    return InvalidArgument("a fetch message of {} bytes, more than the limit of {}",
                           packet.bytes.size(), kMaxFetchMessageBytes);
  Received received;
  if (!received.message.ParseFromString(packet.bytes)) return InvalidArgument("no fetch message");
  received.fds = std::move(packet.fds);
  return received;
}

}  // namespace

absl::Status CheckFetchRequest(const v1::FetchRequest& request, size_t fds) {
  if (request.id() == 0) return InvalidArgument("a fetch request without id");
  const absl::StatusOr<size_t> wanted = CheckBody(request);
  if (!wanted.ok()) return Annotate(wanted.status(), "fetch request");
  if (*wanted != fds)
    return InvalidArgument("fetch request: {} descriptors instead of {}", fds, *wanted);
  return absl::OkStatus();
}

absl::Status SendFetchRequest(int socket, const v1::FetchRequest& request,
                              const std::vector<int>& fds) {
  RETURN_IF_ERROR(CheckFetchRequest(request, fds.size()));
  return Send(socket, request, fds);
}

absl::StatusOr<ReceivedFetchRequest> ReceiveFetchRequest(int socket) {
  return Receive<ReceivedFetchRequest>(socket);
}

v1::FetchReply MakeFetchReply(uint64_t id, const absl::Status& status) {
  v1::FetchReply reply;
  reply.set_id(id);
  reply.set_code(static_cast<int>(status.code()));
  reply.set_message(PrintableAscii(Message(status), kMaxErrorText));
  return reply;
}

absl::Status StatusOf(const v1::FetchReply& reply) {
  if (reply.code() == 0) return absl::OkStatus();
  const bool known = reply.code() > 0 && reply.code() <= 16;
  const auto code =
      known ? static_cast<absl::StatusCode>(reply.code()) : absl::StatusCode::kUnknown;
  return absl::Status(code, reply.message());
}

absl::Status SendFetchReply(int socket, const v1::FetchReply& reply, const std::vector<int>& fds) {
  return Send(socket, reply, fds);
}

absl::StatusOr<ReceivedFetchReply> ReceiveFetchReply(int socket) {
  ASSIGN_OR_RETURN(ReceivedFetchReply reply, Receive<ReceivedFetchReply>(socket));
  if (reply.fds.size() > 1 || (reply.message.code() != 0 && !reply.fds.empty()))
    return InvalidArgument("a fetch reply with {} descriptors", reply.fds.size());
  return reply;
}

}  // namespace kapsule::control
