// A small HTTP client over libcurl: for registries, token services and vaults.
// Follows redirects itself, so that credentials stay with their host.
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
  std::string more_authorities;   // PEM text, beside the system's authorities
  bool verify_tls = true;
  // PEM, shown to servers that ask for one; `client_key` is empty where the key
  // stands in the certificate's file. Read again for each connection.
  std::filesystem::path client_certificate, client_key;
  // A url: others than its scheme, host and port are verified always, and are shown no
  // client certificate. Empty: verify_tls holds for every server, and the certificate
  // is for the first one of a request.
  std::string tls_origin;
  // Offers HTTP/2 in the TLS handshake; never spoken without TLS.
  bool http2 = false;
  std::chrono::milliseconds connect_timeout{15'000};
  // A transfer that moves less than `stall_bytes` in this time is cut off. Time
  // that a caller lets pass between two Upload::Write(), or in its Sink, does not
  // count.
  std::chrono::milliseconds stall_timeout{60'000};
  uint64_t stall_bytes = 1024;
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
  // Of the whole, redirects included, beside the other limits.
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
  // Asked some ten times a second from the thread that waits; true ends the
  // exchange.
  std::function<bool()> stopped = nullptr;
};

struct Response {
  int status = 0;
  std::string url;  // that answered, after redirects
  Headers headers;
  std::string body;
};

using Sink = std::function<absl::Status(ByteSpan)>;
// Sees status, url and headers of a 2xx answer before the Sink sees its first
// byte; an error ends the transfer and is returned.
using HeadCheck = std::function<absl::Status(const Response&)>;

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
//   Cancelled           Request::stopped said so
//   FailedPrecondition  TLS: the certificate does not verify, or no TLS there
//   ResourceExhausted   headers or body larger than the limit
//   InvalidArgument     url or header that cannot be sent, bad redirect
// Messages name the url without its query; they never hold a header. A redirect to
// another host takes along no header but Accept, Content-Type and Range, no client
// certificate, and is not followed with a body.
// Thread-safe; idle connections are kept for the next request.
class Client {
 public:
  explicit Client(Options options);
  ~Client();

  // The answer with a body of at most `body_limit` bytes.
  absl::StatusOr<Response> Send(const Request& request, size_t body_limit) const;
  // As Send(), but the body of a 2xx answer goes to `sink`, whose error ends
  // the transfer and is returned. Other bodies are kept, cut at 64 KiB.
  absl::StatusOr<Response> Download(const Request& request, const Sink& sink,
                                    const HeadCheck& check = nullptr) const;
  // Sends the request's head now, without its `body` and without following
  // redirects; `size` where it is known, else the body is sent in chunks.
  absl::StatusOr<std::unique_ptr<Upload>> StartUpload(const Request& request,
                                                      std::optional<uint64_t> size) const;

 private:
  absl::StatusOr<Response> Run(Request request, const struct Intake& intake) const;
  const Options& OptionsFor(const std::string& url, const std::string& first_url) const;

  const Options options_;
  const Options for_others_;  // than the server that `options_` speak of
  const std::shared_ptr<class HandlePool> pool_;
};

}  // namespace kapsule::http
