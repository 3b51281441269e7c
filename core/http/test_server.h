// A small HTTP server on a loopback port, for tests: it answers with whatever
// bytes the test wants, right or wrong.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "core/base/file.h"

namespace kapsule::http {

class TestServer {
 public:
  struct Request {
    std::string method, target;
    std::map<std::string, std::string> headers;  // names in lower case
    std::string body;                            // its first MiB
    uint64_t body_size = 0;
  };
  struct Answer {
    std::string bytes;  // status line, headers and body
    // kRepeat: bytes for ever; kTrickle: then their last one again every 20 ms
    enum Then { kNext, kClose, kStall, kRepeat, kTrickle } then = kNext;
  };
  using Handler = std::function<Answer(const Request&)>;

  // `handler` may be called from several threads. A request with the header
  // "X-Early" is answered before its body is read.
  explicit TestServer(Handler handler);
  ~TestServer();  // closes every connection

  int port() const { return port_; }
  std::string origin() const { return "http://127.0.0.1:" + std::to_string(port_); }
  std::vector<Request> requests() const;  // so far
  size_t connections() const;

  // A complete answer with its Content-Length.
  static Answer Reply(int status, const std::string& body = "", const std::string& headers = "");

 private:
  void Accept();
  void Serve(int socket);

  const Handler handler_;
  UniqueFd listener_;
  int port_ = 0;
  std::thread acceptor_;

  mutable absl::Mutex mu_;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<UniqueFd> sockets_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mu_);
  std::vector<Request> requests_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::http
