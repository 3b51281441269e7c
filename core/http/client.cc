#include "core/http/client.h"

#include "core/http/exchange.h"
#include "core/http/url.h"

namespace kapsule::http {
namespace {

constexpr size_t kMaxErrorBody = 64 * 1024;
constexpr size_t kUploadBufferBytes = 1 << 20;

bool SendsBody(const std::string& method) {
  return method == "POST" || method == "PUT" || method == "PATCH";
}

absl::Status WithUrl(const absl::Status& status, const Request& request) {
  return Annotate(status, request.method + " " + UrlForMessages(request.url));
}

// 301 to 303 turn other methods into GET for browsers; nobody sends us those.
bool IsRedirect(int status, const std::string& method) {
  if (status == 307 || status == 308) return true;
  return (status == 301 || status == 302 || status == 303) && (method == "GET" || method == "HEAD");
}

// What another host may see; a header that we do not know may be a credential.
void KeepPublicHeaders(Headers* headers) {
  Headers kept;
  for (const auto& [name, value] : *headers) {
    for (const char* known : {"Accept", "Content-Type", "Range"}) {
      if (SameHeaderName(name, known)) kept.Add(name, value);
    }
  }
  *headers = std::move(kept);
}

// Turns `request` to where `location` points.
absl::Status Redirect(const std::string& location, Request* request) {
  ASSIGN_OR_RETURN(std::string target, ResolveUrl(request->url, location));
  if (IsHttps(request->url) && !IsHttps(target))
    return InvalidArgument("a redirect from https to http is not followed");
  if (!SameOrigin(request->url, target)) {
    // It may hold a token, as headers may.
    if (!request->body.empty())
      return InvalidArgument("a redirect to another host is not followed with a body");
    KeepPublicHeaders(&request->headers);
  }
  request->url = std::move(target);
  return absl::OkStatus();
}

// Whose authorities are believed, who are verified always, and to whom nothing is shown.
Options ForOthers(Options options) {
  options.client_certificate.clear();
  options.client_key.clear();
  if (!options.tls_origin.empty()) options.verify_tls = true;
  return options;
}

absl::StatusOr<Response> RunOnce(const std::shared_ptr<HandlePool>& pool, const Options& options,
                                 const Request& request, Intake intake) {
  Exchange exchange(pool, options, request, intake);
  const bool has_body = SendsBody(request.method);
  if (has_body) exchange.SetWholeBody(AsBytes(request.body));
  RETURN_IF_ERROR(exchange.Start(has_body, request.body.size()));
  return exchange.Finish();
}

class CurlUpload final : public Upload {
 public:
  CurlUpload(std::shared_ptr<HandlePool> pool, const Options& options, const Request& request,
             std::optional<uint64_t> size)
      : options_(options),
        request_(request),
        size_(size),
        exchange_(std::move(pool), options_, request_, Intake{nullptr, nullptr, kMaxErrorBody}) {
    buffer_.reserve(kUploadBufferBytes);
  }

  absl::Status Start() { return WithUrl(exchange_.Start(/*has_body=*/true, size_), request_); }

  absl::Status Write(ByteSpan bytes) override {
    const std::optional<uint64_t> sum = CheckedAdd(written_, bytes.size());
    if (!sum || (size_ && *sum > *size_))
      return InvalidArgument("more bytes written than the {} announced", size_.value_or(0));
    written_ = *sum;
    if (bytes.size() <= kUploadBufferBytes - buffer_.size()) {
      buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(Flush());
    return WithUrl(exchange_.Push(bytes), request_);
  }

  absl::StatusOr<Response> Finish() override {
    if (size_ && written_ != *size_ && !exchange_.done())
      return InvalidArgument("{} bytes written, {} announced", written_, *size_);
    // The answer says more than an early end of the body.
    const absl::Status flushed = Flush();
    if (!flushed.ok() && flushed.code() != absl::StatusCode::kFailedPrecondition) return flushed;
    absl::StatusOr<Response> response = exchange_.Finish();
    if (!response.ok()) return WithUrl(response.status(), request_);
    return response;
  }

 private:
  absl::Status Flush() {
    if (buffer_.empty()) return absl::OkStatus();
    const absl::Status pushed = WithUrl(exchange_.Push(buffer_), request_);
    buffer_.clear();
    return pushed;
  }

  const Options options_;
  const Request request_;
  const std::optional<uint64_t> size_;
  Exchange exchange_;
  Bytes buffer_;
  uint64_t written_ = 0;
};

}  // namespace

Client::Client(Options options)
    : options_(std::move(options)),
      for_others_(ForOthers(options_)),
      pool_(std::make_shared<HandlePool>()) {}

Client::~Client() = default;

const Options& Client::OptionsFor(const std::string& url, const std::string& first_url) const {
  const std::string& origin = options_.tls_origin.empty() ? first_url : options_.tls_origin;
  return SameOrigin(url, origin) ? options_ : for_others_;
}

absl::StatusOr<Response> Client::Run(Request request, const Intake& intake) const {
  const std::string first_url = request.url;
  for (int hops = 0;; ++hops) {
    absl::StatusOr<Response> response =
        RunOnce(pool_, OptionsFor(request.url, first_url), request, intake);
    if (!response.ok()) return WithUrl(response.status(), request);
    const std::optional<std::string> location = response->headers.Find("Location");
    if (!location || !IsRedirect(response->status, request.method)) return response;
    if (hops == options_.max_redirects)
      return WithUrl(InvalidArgument("more than {} redirects", options_.max_redirects), request);
    const absl::Status redirected = Redirect(*location, &request);
    if (!redirected.ok()) return WithUrl(redirected, request);
  }
}

absl::StatusOr<Response> Client::Send(const Request& request, size_t body_limit) const {
  return Run(request, {nullptr, nullptr, body_limit});
}

absl::StatusOr<Response> Client::Download(const Request& request, const Sink& sink,
                                          const HeadCheck& check) const {
  return Run(request, {&sink, check ? &check : nullptr, kMaxErrorBody});
}

absl::StatusOr<std::unique_ptr<Upload>> Client::StartUpload(const Request& request,
                                                            std::optional<uint64_t> size) const {
  auto upload =
      std::make_unique<CurlUpload>(pool_, OptionsFor(request.url, request.url), request, size);
  RETURN_IF_ERROR(upload->Start());
  return upload;
}

}  // namespace kapsule::http
