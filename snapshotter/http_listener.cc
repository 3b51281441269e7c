#include "snapshotter/http_listener.h"

#include <absl/time/clock.h>
#include <absl/time/time.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <system_error>

#include "core/base/unix_socket.h"

namespace kapsule::snapshotter {
namespace {

constexpr size_t kMaxHead = 4096, kMaxPath = 256, kMaxSocketPath = 107;
constexpr absl::Duration kRequestTime = absl::Seconds(2);
constexpr int kSendTimeoutMs = 2'000, kThreads = 2, kBacklog = 16;

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

bool IsLoopback(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& four = reinterpret_cast<const sockaddr_in&>(address);
    return ntohl(four.sin_addr.s_addr) >> 24 == 127;
  }
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr) != 0;
}

absl::StatusOr<UniqueFd> ListenTcp(const ListenAddress& address) {
  UniqueFd socket(::socket(address.socket.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return ErrnoStatus(errno, "socket");
  const int on = 1;
  setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&address.socket), address.length) != 0 ||
      listen(socket.get(), kBacklog) != 0) {
    if (errno == EADDRINUSE) return AlreadyExists("another process listens there");
    return ErrnoStatus(errno, "listen");
  }
  return socket;
}

bool IsPort(const std::string& text) {
  uint16_t port = 0;
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, port);
  return parsed.ec == std::errc() && parsed.ptr == end;
}

// Up to the empty line, or what came within kRequestTime and fits.
std::string ReadHead(int connection) {
  std::string head;
  const absl::Time deadline = absl::Now() + kRequestTime;
  while (head.size() < kMaxHead && head.find("\r\n\r\n") == std::string::npos) {
    pollfd ready{connection, POLLIN, 0};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0 || poll(&ready, 1, static_cast<int>(left)) <= 0) break;
    char buffer[1024];
    const ssize_t got =
        recv(connection, buffer, std::min(sizeof(buffer), kMaxHead - head.size()), MSG_DONTWAIT);
    if (got <= 0) break;
    head.append(buffer, static_cast<size_t>(got));
  }
  return head;
}

HttpReply Refusal(const absl::Status& status) {
  return {absl::IsUnimplemented(status) ? 405 : 400, Message(status) + "\n"};
}

}  // namespace

absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text, bool allow_remote) {
  ListenAddress address;
  if (text.starts_with('/')) {
    if (text.size() > kMaxSocketPath)
      return InvalidArgument("{} is longer than {} bytes", text, kMaxSocketPath);
    address.path = text;
    return address;
  }
  const size_t colon = text.rfind(':');
  std::string host = text.substr(0, colon);
  const std::string port = colon == std::string::npos ? "" : text.substr(colon + 1);
  if (!IsPort(port)) host.clear();
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  else if (host.find(':') != std::string::npos)
    host.clear();  // IPv6 without brackets: where does the port begin?
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (host.empty() || getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0)
    return InvalidArgument(
        "\"{}\" is not like 127.0.0.1:9465 or [::1]:9465, nor the path of a unix socket", text);
  address.length = found->ai_addrlen;
  std::copy_n(reinterpret_cast<const char*>(found->ai_addr), found->ai_addrlen,
              reinterpret_cast<char*>(&address.socket));
  freeaddrinfo(found);
  if (!allow_remote && !IsLoopback(address.socket))
    return PermissionDenied("{} is not a loopback address: other machines could connect", text);
  return address;
}

absl::StatusOr<std::string> RequestedPath(std::string_view head) {
  const std::string_view line = head.substr(0, head.find("\r\n"));
  const size_t first = line.find(' '), second = line.find(' ', first + 1);
  if (head.size() == line.size() || first == line.npos || second == line.npos ||
      !line.substr(second + 1).starts_with("HTTP/1.") || line[first + 1] != '/')
    return InvalidArgument("this is no request of HTTP/1");
  if (line.substr(0, first) != "GET") return Unimplemented("only GET");
  const std::string_view target = line.substr(first + 1, second - first - 1);
  const std::string_view path = target.substr(0, target.find('?'));
  if (path.size() > kMaxPath) return InvalidArgument("the path is too long");
  return std::string(path);
}

absl::StatusOr<std::unique_ptr<HttpListener>> HttpListener::Start(const ListenAddress& address,
                                                                  Handler handler) {
  if (!address.path.empty()) RETURN_IF_ERROR(MakeDirs(address.path.parent_path(), 0755));
  ASSIGN_OR_RETURN(UniqueFd socket, address.path.empty()
                                        ? ListenTcp(address)
                                        : ListenUnix(address.path, SOCK_STREAM, 0600));
  // Several threads wait for one connection: who comes late must not wait in accept().
  if (fcntl(socket.get(), F_SETFL, O_NONBLOCK) != 0) return ErrnoStatus(errno, "fcntl");
  UniqueFd stop(eventfd(0, EFD_CLOEXEC));
  if (!stop.valid()) return ErrnoStatus(errno, "eventfd");
  return std::unique_ptr<HttpListener>(
      new HttpListener(address.path, std::move(socket), std::move(stop), std::move(handler)));
}

HttpListener::HttpListener(std::filesystem::path path, UniqueFd socket, UniqueFd stop,
                           Handler handler)
    : path_(std::move(path)),
      socket_(std::move(socket)),
      stop_(std::move(stop)),
      handler_(std::move(handler)) {
  for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Run(); });
}

HttpListener::~HttpListener() {
  const uint64_t one = 1;
  (void)!write(stop_.get(), &one, sizeof(one));
  for (std::thread& thread : threads_) thread.join();
  std::error_code error;
  if (!path_.empty()) std::filesystem::remove(path_, error);
}

uint16_t HttpListener::port() const {
  sockaddr_storage address = {};
  socklen_t length = sizeof(address);
  if (getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  return ntohs(address.ss_family == AF_INET ? reinterpret_cast<sockaddr_in&>(address).sin_port
                                            : reinterpret_cast<sockaddr_in6&>(address).sin6_port);
}

void HttpListener::Run() const {
  for (;;) {
    pollfd ready[] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    if (poll(ready, 2, -1) < 0 && errno != EINTR) return;
    if (ready[1].revents != 0) return;
    const UniqueFd connection(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (connection.valid()) {
      Serve(connection.get());
    } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
      absl::SleepFor(absl::Milliseconds(100));  // no descriptors: not in a busy loop
    }
  }
}

void HttpListener::Serve(int connection) const {
  const absl::StatusOr<std::string> path = RequestedPath(ReadHead(connection));
  const HttpReply reply = path.ok() ? handler_(*path) : Refusal(path.status());
  const std::string text = fmt::format(
      "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n"
      "X-Content-Type-Options: nosniff\r\n\r\n{}",
      reply.code, ReasonOf(reply.code), reply.content_type, reply.body.size(), reply.body);
  if (!SetTimeout(connection, kSendTimeoutMs).ok()) return;
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t more = send(connection, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (more <= 0) return;
    sent += static_cast<size_t>(more);
  }
  shutdown(connection, SHUT_WR);
}

}  // namespace kapsule::snapshotter
