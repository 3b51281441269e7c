// A few pages over HTTP for programs that look at this one: GET, no more.
#pragma once

#include <sys/socket.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/base/file.h"

namespace kapsule::snapshotter {

// "127.0.0.1:9465", "[::1]:9465", or the absolute path of a unix socket.
struct ListenAddress {
  std::filesystem::path path;  // empty: the socket address below
  sockaddr_storage socket = {};
  socklen_t length = 0;
};
// PermissionDenied where others than this machine could connect, unless `allow_remote`.
absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text, bool allow_remote);

// The path that the head of a request asks for, without its query.
//   InvalidArgument  no request of HTTP/1
//   Unimplemented    another method than GET
absl::StatusOr<std::string> RequestedPath(std::string_view head);

struct HttpReply {
  int code = 200;
  std::string body;
  std::string content_type = "text/plain; charset=utf-8";
};

// Reads one request of each connection, answers it and closes. Who is slow is cut off.
class HttpListener {
 public:
  // Called by some threads at once.
  using Handler = std::function<HttpReply(const std::string& path)>;

  // A unix socket is root's alone.
  //   AlreadyExists  another process listens there
  static absl::StatusOr<std::unique_ptr<HttpListener>> Start(const ListenAddress& address,
                                                             Handler handler);
  // Waits for handlers that run.
  ~HttpListener();
  HttpListener(const HttpListener&) = delete;
  HttpListener& operator=(const HttpListener&) = delete;

  // Of a TCP socket; what the kernel chose for port 0.
  uint16_t port() const;

 private:
  HttpListener(std::filesystem::path path, UniqueFd socket, UniqueFd stop, Handler handler);
  void Run() const;
  void Serve(int connection) const;

  // Constant after construction.
  const std::filesystem::path path_;
  const UniqueFd socket_, stop_;
  const Handler handler_;
  std::vector<std::thread> threads_;
};

}  // namespace kapsule::snapshotter
