#include "core/control/holder_wire.h"

#include <algorithm>

#include "core/base/unix_socket.h"
#include "core/control/holder_frames.h"

namespace kapsule::control {
namespace {

struct Answer {
  bool more;
  std::string names;
  std::vector<UniqueFd> fds;
};

// Whatever becomes of the transport, the holder is of no use any more.
absl::Status Gone(const absl::Status& status) {
  return Unavailable("the holder does not answer: {}", Message(status));
}

absl::Status StatusOfCode(absl::StatusCode code, std::string_view name) {
  switch (code) {
    case absl::StatusCode::kOk:
      return absl::OkStatus();
    case absl::StatusCode::kNotFound:
      return NotFound("the holder has no \"{}\"", name);
    case absl::StatusCode::kResourceExhausted:
      return ResourceExhausted("no room for \"{}\": the holder is full", name);
    case absl::StatusCode::kPermissionDenied:
      return PermissionDenied("only root may change \"{}\"", name);
    case absl::StatusCode::kInvalidArgument:
      return InvalidArgument("the holder refuses the request for \"{}\"", name);
    default:
      return Internal("the holder answers {} for \"{}\"", static_cast<int>(code), name);
  }
}

absl::StatusOr<Answer> ParseAnswer(Packet packet, std::string_view name) {
  if (packet.bytes.size() < kHolderAnswerHeader)
    return Internal("the holder's answer is cut short");
  RETURN_IF_ERROR(
      StatusOfCode(static_cast<absl::StatusCode>(static_cast<uint8_t>(packet.bytes[0])), name));
  Answer answer{packet.bytes[1] != 0, packet.bytes.substr(kHolderAnswerHeader),
                std::move(packet.fds)};
  return answer;
}

// With SO_PASSCRED the kernel attaches the sender's uid also while the holder
// has not accepted the connection.
absl::Status Ready(int connection, int patience_ms) {
  const int on = 1;
  if (setsockopt(connection, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) != 0)
    return ErrnoStatus(errno, "the connection to the holder");
  return SetTimeout(connection, patience_ms);
}

absl::StatusOr<Answer> Ask(int connection, absl::Duration patience, HolderOperation operation,
                           std::string_view name, std::vector<int> fds = {},
                           std::string_view rest = {}) {
  std::string request(kHolderRequestHeader, '\0');
  request[0] = static_cast<char>(operation);
  request[1] = static_cast<char>(name.size());
  request.append(name).append(rest);

  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoStatus(errno, "socketpair");
  const UniqueFd ours(pair[0]);
  UniqueFd theirs(pair[1]);
  const int patience_ms = static_cast<int>(absl::ToInt64Milliseconds(patience));
  RETURN_IF_ERROR(SetTimeout(ours.get(), patience_ms));
  RETURN_IF_ERROR(Ready(connection, patience_ms));
  fds.push_back(theirs.get());
  if (absl::Status sent = SendPacket(connection, AsBytes(request), fds); !sent.ok())
    return Gone(sent);
  // The holder then has the only other end, and its death closes that.
  theirs.reset();
  absl::StatusOr<Packet> packet = ReceivePacket(ours.get());
  if (!packet.ok()) return Gone(packet.status());
  return ParseAnswer(*std::move(packet), name);
}

absl::Status CheckName(std::string_view name) {
  if (!IsHeldName(name))
    return InvalidArgument("\"{}\" is not a name of at most {} of the characters a-z0-9/-_", name,
                           kMaxHeldName);
  return absl::OkStatus();
}

absl::Status AppendNames(std::string_view packed, std::vector<std::string>& names) {
  while (!packed.empty()) {
    const size_t length = static_cast<uint8_t>(packed[0]);
    const std::string_view name = packed.substr(1, length);
    // Each name after the last one: so a listing of pages ends.
    if (name.size() != length || !IsHeldName(name) || (!names.empty() && name <= names.back()))
      return Internal("the holder lists names that are none");
    names.emplace_back(name);
    packed.remove_prefix(1 + length);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Holder::Put(std::string_view name, const std::vector<int>& fds) const {
  RETURN_IF_ERROR(CheckName(name));
  if (fds.empty() || fds.size() > kMaxHeldFds)
    return InvalidArgument("{} descriptors for \"{}\": 1 to {} can be held under a name",
                           fds.size(), name, kMaxHeldFds);
  return Ask(connection_.get(), patience_, HolderOperation::kPut, name, fds).status();
}

absl::StatusOr<std::vector<UniqueFd>> Holder::Get(std::string_view name) const {
  RETURN_IF_ERROR(CheckName(name));
  ASSIGN_OR_RETURN(Answer answer, Ask(connection_.get(), patience_, HolderOperation::kGet, name));
  if (answer.fds.empty()) return Internal("the holder sent no descriptor of \"{}\"", name);
  return std::move(answer.fds);
}

absl::Status Holder::Drop(std::string_view name) const {
  RETURN_IF_ERROR(CheckName(name));
  return Ask(connection_.get(), patience_, HolderOperation::kDrop, name).status();
}

absl::StatusOr<std::vector<std::string>> Holder::List(std::string_view prefix) const {
  if (!IsHeldText(prefix)) return InvalidArgument("\"{}\" begins no name", prefix);
  std::vector<std::string> names;
  while (true) {
    const std::string last = names.empty() ? "" : names.back();
    ASSIGN_OR_RETURN(const Answer answer,
                     Ask(connection_.get(), patience_, HolderOperation::kList, prefix, {}, last));
    RETURN_IF_ERROR(AppendNames(answer.names, names));
    if (!answer.more || answer.names.empty()) return names;
  }
}

absl::Status Holder::Quit() const {
  return Ask(connection_.get(), patience_, HolderOperation::kQuit, "").status();
}

}  // namespace kapsule::control
