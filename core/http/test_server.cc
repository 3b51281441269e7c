#include "core/http/test_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>

namespace kapsule::http {
namespace {

constexpr size_t kKeptBody = 1 << 20;

// Reads lines and counted bytes from a socket.
class Reader {
 public:
  explicit Reader(int socket) : socket_(socket), buffer_(1 << 20) {}

  bool Line(std::string* line) {
    line->clear();
    for (;;) {
      if (at_ == end_ && !Fill()) return false;
      const char c = buffer_[at_++];
      if (c == '\n') break;
      if (c != '\r') *line += c;
    }
    return true;
  }

  bool Body(uint64_t count, TestServer::Request* request) {
    while (count > 0) {
      if (at_ == end_ && !Fill()) return false;
      const size_t n = std::min<uint64_t>(count, end_ - at_);
      const size_t room = kKeptBody - std::min(kKeptBody, request->body.size());
      request->body.append(buffer_.data() + at_, std::min(n, room));
      request->body_size += n;
      at_ += n;
      count -= n;
    }
    return true;
  }

 private:
  bool Fill() {
    const ssize_t n = recv(socket_, buffer_.data(), buffer_.size(), 0);
    at_ = 0;
    end_ = n > 0 ? static_cast<size_t>(n) : 0;
    return n > 0;
  }

  const int socket_;
  std::vector<char> buffer_;
  size_t at_ = 0, end_ = 0;
};

bool SendAll(int socket, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

bool ReadHead(Reader* reader, TestServer::Request* request) {
  std::string line;
  if (!reader->Line(&line)) return false;
  const size_t first = line.find(' '), second = line.rfind(' ');
  request->method = line.substr(0, first);
  request->target = line.substr(first + 1, second - first - 1);
  while (reader->Line(&line)) {
    if (line.empty()) return true;
    const size_t colon = line.find(": ");
    std::string name = line.substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(), tolower);
    request->headers[name] = colon == std::string::npos ? "" : line.substr(colon + 2);
  }
  return false;
}

bool ReadBody(Reader* reader, TestServer::Request* request) {
  if (const auto length = request->headers.find("content-length"); length != request->headers.end())
    return reader->Body(strtoull(length->second.c_str(), nullptr, 10), request);
  if (request->headers["transfer-encoding"] != "chunked") return true;
  std::string line;
  while (reader->Line(&line)) {
    const uint64_t size = strtoull(line.c_str(), nullptr, 16);
    if (!reader->Body(size, request) || !reader->Line(&line)) return false;
    if (size == 0) return true;
  }
  return false;
}

}  // namespace

TestServer::TestServer(Handler handler) : handler_(std::move(handler)) {
  listener_ = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (bind(listener_.get(), generic, sizeof address) != 0 || listen(listener_.get(), 64) != 0 ||
      getsockname(listener_.get(), generic, &length) != 0)
    std::abort();
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { Accept(); });
}

TestServer::~TestServer() {
  shutdown(listener_.get(), SHUT_RDWR);
  acceptor_.join();
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mu_);
    ending_ = true;
    for (const UniqueFd& socket : sockets_) shutdown(socket.get(), SHUT_RDWR);
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<TestServer::Request> TestServer::requests() const {
  absl::MutexLock lock(&mu_);
  return requests_;
}

size_t TestServer::connections() const {
  absl::MutexLock lock(&mu_);
  return sockets_.size();
}

TestServer::Answer TestServer::Reply(int status, const std::string& body,
                                     const std::string& headers) {
  return {fmt::format("HTTP/1.1 {} Text\r\nContent-Length: {}\r\n{}\r\n{}", status, body.size(),
                      headers, body)};
}

void TestServer::Accept() {
  for (;;) {
    UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket.valid()) return;
    absl::MutexLock lock(&mu_);
    threads_.emplace_back([this, fd = socket.get()] { Serve(fd); });
    sockets_.push_back(std::move(socket));
  }
}

void TestServer::Serve(int socket) {
  Reader reader(socket);
  for (;;) {
    Request request;
    if (!ReadHead(&reader, &request)) break;
    Answer answer;
    if (request.headers.contains("x-early")) {
      answer = handler_(request);
    } else {
      if (!ReadBody(&reader, &request)) break;
      answer = handler_(request);
    }
    {
      absl::MutexLock lock(&mu_);
      requests_.push_back(request);
    }
    bool sent = SendAll(socket, answer.bytes);
    while (sent && answer.then == Answer::kRepeat) sent = SendAll(socket, answer.bytes);
    while (sent && answer.then == Answer::kTrickle) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      sent = SendAll(socket, std::string_view(answer.bytes).substr(answer.bytes.size() - 1));
    }
    if (answer.then == Answer::kStall) {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(&ending_));
    }
    if (!sent || answer.then != Answer::kNext) break;
  }
  shutdown(socket, SHUT_RDWR);
}

}  // namespace kapsule::http
