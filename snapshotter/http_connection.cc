#include "snapshotter/http_connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace kapsule::snapshotter {
namespace {

constexpr size_t kMaxHead = 4096;
constexpr absl::Duration kRequestTime = absl::Seconds(2), kReplyTime = absl::Seconds(2);
constexpr std::string_view kEndOfHead = "\r\n\r\n";

const char* ReasonOf(int code) {
  switch (code) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    default:
      return "Service Unavailable";
  }
}

HttpReply Refusal(const absl::Status& status) {
  return {absl::IsUnimplemented(status) ? 405 : 400, Message(status) + "\n"};
}

bool IsForNow() { return errno == EAGAIN || errno == EINTR; }

}  // namespace

HttpConnection::HttpConnection(UniqueFd socket, absl::Time now)
    : socket_(std::move(socket)), deadline_(now + kRequestTime) {}

short HttpConnection::events() const { return state_ == State::kReading ? POLLIN : POLLOUT; }

std::optional<std::string> HttpConnection::Read(absl::Time now) {
  char buffer[kMaxHead];
  const ssize_t got = recv(socket_.get(), buffer, kMaxHead - text_.size(), 0);
  const bool more = got > 0 || (got < 0 && IsForNow());
  if (got > 0) text_.append(buffer, static_cast<size_t>(got));
  if (more && text_.size() < kMaxHead && text_.find(kEndOfHead) == text_.npos && now < deadline_)
    return std::nullopt;
  absl::StatusOr<std::string> path = RequestedPath(text_);
  if (!path.ok()) {
    Reply(Refusal(path.status()), now);
    return std::nullopt;
  }
  state_ = State::kAsked;
  return *std::move(path);
}

void HttpConnection::Reply(const HttpReply& reply, absl::Time now) {
  text_ = fmt::format(
      "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n"
      "X-Content-Type-Options: nosniff\r\n\r\n{}",
      reply.code, ReasonOf(reply.code), reply.content_type, reply.body.size(), reply.body);
  state_ = State::kWriting;
  deadline_ = now + kReplyTime;
  Write(now);
}

void HttpConnection::Write(absl::Time now) {
  const ssize_t more =
      send(socket_.get(), text_.data() + sent_, text_.size() - sent_, MSG_NOSIGNAL);
  if (more > 0) sent_ += static_cast<size_t>(more);
  const bool failed = more < 0 && !IsForNow();
  if (sent_ < text_.size() && !failed && now < deadline_) return;
  shutdown(socket_.get(), SHUT_WR);
  state_ = State::kDone;
}

}  // namespace kapsule::snapshotter
