// A few pages over HTTP for programs that look at this one: GET, no more.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <sys/socket.h>

#include <deque>
#include <filesystem>
#include <functional>
#include <map>
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

class HttpConnection;  // http_connection.h

// Reads one request of each connection, answers it and closes. Who is slow to ask, or to
// take the answer, is cut off; where there are too many, those that have waited longest.
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
  using Connections = std::map<uint64_t, HttpConnection>;  // in the order they came
  struct Asked {
    uint64_t connection;
    std::string path;
  };
  struct Answered {
    uint64_t connection;
    HttpReply reply;
  };

  HttpListener(std::filesystem::path path, UniqueFd socket, UniqueFd wake, Handler handler);
  // One thread does what is done with sockets, others call the handler.
  void ServeConnections() ABSL_LOCKS_EXCLUDED(mu_);
  void CallHandler() ABSL_LOCKS_EXCLUDED(mu_);

  // False where it is over.
  bool Wait(const Connections& connections) const ABSL_LOCKS_EXCLUDED(mu_);
  void Accept(Connections& connections);
  void Advance(Connections& connections) ABSL_LOCKS_EXCLUDED(mu_);
  void Wake() const;

  // Constant after construction.
  const std::filesystem::path path_;
  const UniqueFd socket_, wake_;
  const Handler handler_;
  std::vector<std::thread> threads_;

  uint64_t accepted_ = 0;  // of the thread that serves connections

  mutable absl::Mutex mu_;  // never held over I/O or a handler
  std::deque<Asked> asked_ ABSL_GUARDED_BY(mu_);
  std::vector<Answered> answered_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace kapsule::snapshotter
