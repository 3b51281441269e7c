#include "core/control/control_wire.h"

#include <sys/socket.h>

#include <cerrno>

#include "core/base/printable.h"
#include "core/base/unix_socket.h"

namespace kapsule::control {
namespace {

absl::Status CheckDigest(std::string_view digest) {
  const bool hex = digest.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  if (digest.size() != 64 || !hex) return InvalidArgument("a digest that is not 64 hex digits");
  return absl::OkStatus();
}

absl::Status CheckTimeout(uint32_t milliseconds) {
  return milliseconds == 0 ? InvalidArgument("a timeout of 0") : absl::OkStatus();
}

absl::Status CheckOpen(const v1::OpenRequest& open) {
  RETURN_IF_ERROR(CheckDigest(open.digest()));
  if (open.size() == 0) return InvalidArgument("a layer of 0 bytes");
  return CheckTimeout(open.timeout_ms());
}

absl::Status CheckAuthorise(const v1::AuthoriseRequest& authorise) {
  RETURN_IF_ERROR(CheckDigest(authorise.digest()));
  return CheckTimeout(authorise.timeout_ms());
}

absl::StatusOr<size_t> CheckBody(const v1::DataPlaneRequest& request) {
  switch (request.request_case()) {
    case v1::DataPlaneRequest::kServe:
      return 0;
    case v1::DataPlaneRequest::kOpen:
      RETURN_IF_ERROR(CheckOpen(request.open()));
      return 2;
    case v1::DataPlaneRequest::kAuthorise:
      RETURN_IF_ERROR(CheckAuthorise(request.authorise()));
      return 1;
    case v1::DataPlaneRequest::kClose:
      RETURN_IF_ERROR(CheckDigest(request.close().digest()));
      return 0;
    case v1::DataPlaneRequest::kPrepare:
      RETURN_IF_ERROR(CheckTimeout(request.prepare().timeout_ms()));
      return 0;
    case v1::DataPlaneRequest::kUseFetcher:
      return 1;
    case v1::DataPlaneRequest::kUseLocal:
      RETURN_IF_ERROR(CheckDigest(request.use_local().digest()));
      return 1;
    case v1::DataPlaneRequest::kUseFile:
      RETURN_IF_ERROR(CheckDigest(request.use_file().digest()));
      return 1;
    case v1::DataPlaneRequest::REQUEST_NOT_SET:
      break;
  }
  return InvalidArgument("no request that this version knows");
}

// Around the annotations of a record.
constexpr std::string_view kRecordBegin = R"({"annotations":)";
constexpr std::string_view kRemoteEnd = R"(,"remote":true})", kLocalEnd = R"(,"remote":false})";

template <typename Message>
absl::Status Send(int socket, const Message& message, const std::vector<int>& fds) {
  std::string bytes;
  if (!message.SerializeToString(&bytes) || bytes.size() > kMaxMessageBytes)
    return InvalidArgument("a control message of {} bytes", bytes.size());
  return SendPacket(socket, AsBytes(bytes), fds);
}

template <typename Message>
absl::Status Parse(const Packet& packet, Message* message) {
  if (packet.bytes.size() > kMaxMessageBytes)
    return InvalidArgument("a control message of {} bytes, more than the limit of {}",
                           packet.bytes.size(), kMaxMessageBytes);
  if (!message->ParseFromString(packet.bytes)) return InvalidArgument("not a control message");
  return absl::OkStatus();
}

}  // namespace

std::string RecordToJson(const LayerRecord& record) {
  std::string json(kRecordBegin);
  return json.append(record.annotations).append(record.remote ? kRemoteEnd : kLocalEnd);
}

absl::StatusOr<LayerRecord> RecordFromJson(std::string_view json) {
  // The annotations' own values are strings.
  if (!json.starts_with(kRecordBegin) || json.substr(kRecordBegin.size()).starts_with('"'))
    return LayerRecord{std::string(json), false};
  const bool remote = json.ends_with(kRemoteEnd);
  if (!remote && !json.ends_with(kLocalEnd))
    return InvalidArgument("a layer's record that does not say whether it is remote");
  json.remove_prefix(kRecordBegin.size());
  json.remove_suffix(remote ? kRemoteEnd.size() : kLocalEnd.size());
  return LayerRecord{std::string(json), remote};
}

absl::StatusOr<SocketPair> MakeSocketPair() {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
    return ErrnoStatus(errno, "socketpair");
  return SocketPair{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

absl::Status CheckRequest(const v1::DataPlaneRequest& request, size_t fds) {
  if (request.id() == 0) return InvalidArgument("a control request without id");
  const absl::StatusOr<size_t> wanted = CheckBody(request);
  if (!wanted.ok()) return Annotate(wanted.status(), "control request");
  if (*wanted != fds)
    return InvalidArgument("control request: {} descriptors instead of {}", fds, *wanted);
  return absl::OkStatus();
}

absl::Status SendRequest(int socket, const v1::DataPlaneRequest& request,
                         const std::vector<int>& fds) {
  RETURN_IF_ERROR(CheckRequest(request, fds.size()));
  return Send(socket, request, fds);
}

absl::StatusOr<ReceivedRequest> ReceiveRequest(int socket) {
  ASSIGN_OR_RETURN(Packet packet, ReceivePacket(socket));
  ReceivedRequest request;
  RETURN_IF_ERROR(Parse(packet, &request.message));
  request.fds = std::move(packet.fds);
  return request;
}

v1::DataPlaneReply MakeReply(uint64_t id, const absl::Status& status) {
  v1::DataPlaneReply reply;
  reply.set_id(id);
  reply.set_code(static_cast<int>(status.code()));
  reply.set_message(PrintableAscii(Message(status), kMaxErrorText));
  return reply;
}

absl::Status StatusOf(const v1::DataPlaneReply& reply) {
  if (reply.code() == 0) return absl::OkStatus();
  const bool known = reply.code() > 0 && reply.code() <= 16;
  const auto code =
      known ? static_cast<absl::StatusCode>(reply.code()) : absl::StatusCode::kUnknown;
  return absl::Status(code, reply.message());
}

absl::Status SendReply(int socket, const v1::DataPlaneReply& reply) {
  return Send(socket, reply, {});
}

absl::StatusOr<v1::DataPlaneReply> ReceiveReply(int socket) {
  ASSIGN_OR_RETURN(const Packet packet, ReceivePacket(socket));
  if (!packet.fds.empty()) return InvalidArgument("a control reply with descriptors");
  v1::DataPlaneReply reply;
  RETURN_IF_ERROR(Parse(packet, &reply));
  return reply;
}

}  // namespace kapsule::control
