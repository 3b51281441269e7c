// A small HTTP/1.1 client over libcurl: for registries, token services and
// vaults. Follows redirects itself, so that credentials stay with their host.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/base/bytes.h"
#include "core/http/headers.h"

namespace kapsule::http {

struct Options {
  std::string user_agent = "kapsule/" KAPSULE_VERSION;
  std::filesystem::path ca_file;  // PEM, in place of the system's authorities
  bool verify_tls = true;
  std::chrono::milliseconds connect_timeout{15'000};
  // A transfer that moves less than 1 KiB in this time is cut off. Time that a
  // caller lets pass between two Upload::Write() does not count.
  std::chrono::milliseconds stall_timeout{60'000};
  int max_redirects = 5;
};

struct Request {
  std::string method = "GET";
  std::string url;  // http or https
  Headers headers;
  std::string body;  // sent with POST, PUT and PATCH only
  // Of one exchange (a redirect begins another), in place of the stall limit;
  // 0: none.
  std::chrono::milliseconds timeout{0};
};

struct Response {
  int status = 0;
  std::string url;  // that answered, after redirects
  Headers headers;
  std::string body;
};

using Sink = std::function<absl::Status(ByteSpan)>;

// A request body on its way; at most 1 MiB is held. Destroying it before
// Finish() breaks the connection. Not thread-safe.
class Upload {
 public:
  virtual ~Upload() = default;
  // FailedPrecondition: the server answered before the end of the body; ask
  // Finish() for its answer. Other errors as of Client.
  virtual absl::Status Write(ByteSpan bytes) = 0;
  // Ends the body and waits for the answer. Once.
  //   InvalidArgument  fewer bytes were written than announced
  virtual absl::StatusOr<Response> Finish() = 0;
};

// An answer of any status is a Response; a Status is about the exchange:
//   Unavailable         no connection, or it broke
//   DeadlineExceeded    connect, stall or total time
//   FailedPrecondition  TLS: the certificate does not verify, or no TLS there
//   ResourceExhausted   headers or body larger than the limit
//   InvalidArgument     url or header that cannot be sent, bad redirect
// Messages name the url without its query; they never hold a header.
// Thread-safe; idle connections are kept for the next request.
class Client {
 public:
  explicit Client(Options options);
  ~Client();

  // The answer with a body of at most `body_limit` bytes.
  absl::StatusOr<Response> Send(const Request& request, size_t body_limit) const;
  // As Send(), but the body of a 2xx answer goes to `sink`, whose error ends
  // the transfer and is returned. Other bodies are kept, cut at 64 KiB.
  absl::StatusOr<Response> Download(const Request& request, const Sink& sink) const;
  // Sends the request's head now, without its `body` and without following
  // redirects; `size` where it is known, else the body is sent in chunks.
  absl::StatusOr<std::unique_ptr<Upload>> StartUpload(const Request& request,
                                                      std::optional<uint64_t> size) const;

 private:
  absl::StatusOr<Response> Run(Request request, const Sink* sink, size_t body_limit) const;

  const Options options_;
  const std::shared_ptr<class HandlePool> pool_;
};

}  // namespace kapsule::http
