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
#include <iterator>
#include <system_error>

#include "core/base/unix_socket.h"
#include "snapshotter/http_connection.h"

namespace kapsule::snapshotter {
namespace {

constexpr size_t kMaxPath = 256, kMaxSocketPath = 107, kMaxConnections = 64;
constexpr int kHandlers = 2, kBacklog = 64;

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

int MillisecondsUntil(absl::Time time) {
  if (time == absl::InfiniteFuture()) return -1;
  const absl::Duration left = std::max(absl::ZeroDuration(), time - absl::Now());
  return static_cast<int>(absl::ToInt64Milliseconds(left)) + 1;
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
  if (fcntl(socket.get(), F_SETFL, O_NONBLOCK) != 0) return ErrnoStatus(errno, "fcntl");
  UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return ErrnoStatus(errno, "eventfd");
  return std::unique_ptr<HttpListener>(
      new HttpListener(address.path, std::move(socket), std::move(wake), std::move(handler)));
}

HttpListener::HttpListener(std::filesystem::path path, UniqueFd socket, UniqueFd wake,
                           Handler handler)
    : path_(std::move(path)),
      socket_(std::move(socket)),
      wake_(std::move(wake)),
      handler_(std::move(handler)) {
  threads_.emplace_back([this] { ServeConnections(); });
  for (int i = 0; i < kHandlers; ++i) threads_.emplace_back([this] { CallHandler(); });
}

HttpListener::~HttpListener() {
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  Wake();
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

void HttpListener::Wake() const {
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof(one));
}

void HttpListener::CallHandler() {
  for (;;) {
    Asked asked;
    {
      const absl::MutexLock lock(&mu_);
      const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stopping_ || !asked_.empty();
      };
      mu_.Await(absl::Condition(&ready));
      if (stopping_) return;
      asked = std::move(asked_.front());
      asked_.pop_front();
    }
    HttpReply reply = handler_(asked.path);
    {
      const absl::MutexLock lock(&mu_);
      answered_.push_back({asked.connection, std::move(reply)});
    }
    Wake();
  }
}

void HttpListener::ServeConnections() {
  Connections connections;
  while (Wait(connections)) {
    Advance(connections);
    Accept(connections);
  }
}

bool HttpListener::Wait(const Connections& connections) const {
  std::vector<pollfd> fds = {{socket_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [number, connection] : connections) {
    if (connection.state() == HttpConnection::State::kAsked) continue;
    fds.push_back({connection.fd(), connection.events(), 0});
    next = std::min(next, connection.deadline());
  }
  if (poll(fds.data(), fds.size(), MillisecondsUntil(next)) < 0 && errno != EINTR) return false;
  uint64_t woken = 0;
  (void)!read(wake_.get(), &woken, sizeof(woken));
  const absl::MutexLock lock(&mu_);
  return !stopping_;
}

// Every connection is tried: that costs less than to find out which are ready.
void HttpListener::Advance(Connections& connections) {
  std::vector<Answered> answered;
  {
    const absl::MutexLock lock(&mu_);
    answered.swap(answered_);
  }
  const absl::Time now = absl::Now();
  for (const Answered& answer : answered)
    connections.at(answer.connection).Reply(answer.reply, now);
  std::vector<Asked> asked;
  for (auto& [number, connection] : connections) {
    if (connection.state() == HttpConnection::State::kWriting) {
      connection.Write(now);
    } else if (connection.state() == HttpConnection::State::kReading) {
      if (auto path = connection.Read(now)) asked.push_back({number, *std::move(path)});
    }
  }
  std::erase_if(connections, [](const auto& item) {
    return item.second.state() == HttpConnection::State::kDone;
  });
  const absl::MutexLock lock(&mu_);
  std::move(asked.begin(), asked.end(), std::back_inserter(asked_));
}

// Those whose reply is being made stay: no more are, then, than fit.
void HttpListener::Accept(Connections& connections) {
  for (size_t i = 0; i < kMaxConnections; ++i) {
    UniqueFd socket(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        absl::SleepFor(absl::Milliseconds(100));  // no descriptors: not in a busy loop
      return;
    }
    if (connections.size() >= kMaxConnections) {
      const auto oldest = std::find_if(
          connections.begin(), connections.end(),
          [](const auto& item) { return item.second.state() != HttpConnection::State::kAsked; });
      if (oldest == connections.end()) continue;
      connections.erase(oldest);
    }
    connections.try_emplace(++accepted_, std::move(socket), absl::Now());
  }
}

}  // namespace kapsule::snapshotter
