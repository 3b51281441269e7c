#include "core/http/exchange.h"

#include <sys/socket.h>

#include <algorithm>

#include "core/http/no_sigpipe.h"

namespace kapsule::http {
namespace {

constexpr size_t kMaxHeaderBytes = 128 * 1024;
constexpr int kPollMilliseconds = 100;
constexpr long kUploadBufferBytes = 1 << 20;
constexpr long kDownloadBufferBytes = 512 * 1024;

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

bool CanBeSent(std::string_view text) {
  return text.find_first_of(std::string_view("\r\n\0", 3)) == std::string_view::npos;
}

// libcurl's own sockets would be inherited by programs that we start.
curl_socket_t OpenSocket(void*, curlsocktype, curl_sockaddr* address) {
  return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

absl::Status CurlStatus(CURLcode code, const std::string& what) {
  switch (code) {
    case CURLE_OPERATION_TIMEDOUT:
      return DeadlineExceeded("{}", what);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_ISSUER_ERROR:
      return FailedPrecondition("tls: {}", what);
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
      return InvalidArgument("{}", what);
    case CURLE_OUT_OF_MEMORY:
      return ResourceExhausted("{}", what);
    default:
      return Unavailable("{}", what);
  }
}

}  // namespace

Exchange::Exchange(std::shared_ptr<HandlePool> pool, const Options& options, const Request& request,
                   Intake intake)
    : pool_(std::move(pool)), options_(options), request_(request), intake_(intake) {}

Exchange::~Exchange() {
  const NoSigpipe no_sigpipe;
  if (handles_ != nullptr) {
    curl_multi_remove_handle(handles_->multi(), handles_->easy());
    pool_->Return(std::move(handles_));
  }
  curl_slist_free_all(header_list_);
}

absl::Status Exchange::SetHeaders(bool has_body) {
  const auto append = [this](const std::string& line) {
    curl_slist* list = curl_slist_append(header_list_, line.c_str());
    if (list != nullptr) header_list_ = list;
    return list != nullptr;
  };
  bool appended = true;
  for (const auto& [name, value] : request_.headers) {
    if (!CanBeSent(name) || !CanBeSent(value))
      return InvalidArgument("a header that holds a line break");
    // libcurl's spelling of a header without value.
    appended = appended && append(value.empty() ? name + ";" : name + ": " + value);
  }
  // Without these libcurl waits for "100 continue" and announces a form.
  appended = appended && append("Expect:");
  if (has_body && !request_.headers.Find("Content-Type"))
    appended = appended && append("Content-Type: application/octet-stream");
  return appended ? absl::OkStatus() : ResourceExhausted("no memory for headers");
}

absl::Status Exchange::SetTls() {
  CURL* easy = handles_->easy();
  CURLcode code = CURLE_OK;
  const auto set = [&](CURLoption option, auto value) {
    if (code == CURLE_OK) code = curl_easy_setopt(easy, option, value);
  };
  set(CURLOPT_SSL_VERIFYPEER, options_.verify_tls ? 1L : 0L);
  set(CURLOPT_SSL_VERIFYHOST, options_.verify_tls ? 2L : 0L);
  if (!options_.ca_file.empty()) {
    set(CURLOPT_CAINFO, options_.ca_file.c_str());
    set(CURLOPT_CAPATH, static_cast<const char*>(nullptr));
  }
  if (!options_.more_authorities.empty()) {
    // Replaces libcurl's bundle; its folder of the system's authorities stays.
    std::string& pem = const_cast<std::string&>(options_.more_authorities);
    curl_blob blob = {pem.data(), pem.size(), CURL_BLOB_NOCOPY};
    set(CURLOPT_CAINFO_BLOB, &blob);
  }
  if (!options_.client_certificate.empty()) {
    const std::filesystem::path& key =
        options_.client_key.empty() ? options_.client_certificate : options_.client_key;
    set(CURLOPT_SSLCERT, options_.client_certificate.c_str());
    set(CURLOPT_SSLKEY, key.c_str());
  }
  return code == CURLE_OK ? absl::OkStatus() : CurlStatus(code, curl_easy_strerror(code));
}

absl::Status Exchange::SetOptions(bool has_body, std::optional<uint64_t> size) {
  CURL* easy = handles_->easy();
  CURLcode code = CURLE_OK;
  const auto set = [&](CURLoption option, auto value) {
    if (code == CURLE_OK) code = curl_easy_setopt(easy, option, value);
  };
  set(CURLOPT_ERRORBUFFER, error_text_);
  set(CURLOPT_URL, request_.url.c_str());
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_HTTP_VERSION,
      static_cast<long>(options_.http2 ? CURL_HTTP_VERSION_2TLS : CURL_HTTP_VERSION_1_1));
  set(CURLOPT_NOSIGNAL, 1L);
  // A name server that does not answer holds up nobody who has given up.
  set(CURLOPT_QUICK_EXIT, 1L);
  set(CURLOPT_USERAGENT, options_.user_agent.c_str());
  set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options_.connect_timeout.count()));
  set(CURLOPT_OPENSOCKETFUNCTION, OpenSocket);
  set(CURLOPT_BUFFERSIZE, kDownloadBufferBytes);
  set(CURLOPT_HEADERFUNCTION, HeaderCallback);
  set(CURLOPT_HEADERDATA, this);
  set(CURLOPT_WRITEFUNCTION, WriteCallback);
  set(CURLOPT_WRITEDATA, this);
  set(CURLOPT_NOPROGRESS, 0L);
  set(CURLOPT_XFERINFOFUNCTION, ProgressCallback);
  set(CURLOPT_XFERINFODATA, this);
  if (has_body) {
    set(CURLOPT_UPLOAD, 1L);
    set(CURLOPT_UPLOAD_BUFFERSIZE, kUploadBufferBytes);
    set(CURLOPT_INFILESIZE_LARGE, size ? static_cast<curl_off_t>(*size) : curl_off_t{-1});
    set(CURLOPT_READFUNCTION, ReadCallback);
    set(CURLOPT_READDATA, this);
    set(CURLOPT_SEEKFUNCTION, SeekCallback);
    set(CURLOPT_SEEKDATA, this);
  }
  if (request_.method == "HEAD") set(CURLOPT_NOBODY, 1L);
  set(CURLOPT_CUSTOMREQUEST, request_.method.c_str());
  set(CURLOPT_HTTPHEADER, header_list_);
  return code == CURLE_OK ? absl::OkStatus() : CurlStatus(code, curl_easy_strerror(code));
}

absl::Status Exchange::Start(bool has_body, std::optional<uint64_t> size) {
  ASSIGN_OR_RETURN(handles_, pool_->Take());
  RETURN_IF_ERROR(SetHeaders(has_body));
  RETURN_IF_ERROR(SetOptions(has_body, size));
  RETURN_IF_ERROR(SetTls());
  if (curl_multi_add_handle(handles_->multi(), handles_->easy()) != CURLM_OK)
    return Internal("libcurl refuses a transfer");
  response_.url = request_.url;
  started_ = Clock::now();
  return absl::OkStatus();
}

void Exchange::SetWholeBody(ByteSpan bytes) {
  whole_body_ = pending_ = bytes;
  body_ended_ = true;
}

absl::Status Exchange::Push(ByteSpan bytes) {
  pending_ = bytes;
  curl_easy_pause(handles_->easy(), CURLPAUSE_CONT);
  const absl::Status driven = Drive(/*until_taken=*/true);
  const bool taken = pending_.empty();
  pending_ = {};
  RETURN_IF_ERROR(driven);
  if (!done_) return absl::OkStatus();
  RETURN_IF_ERROR(ResultStatus());
  if (taken) return absl::OkStatus();
  return FailedPrecondition("the server answered {} before the end of the body", response_.status);
}

absl::StatusOr<Response> Exchange::Finish() {
  body_ended_ = true;
  curl_easy_pause(handles_->easy(), CURLPAUSE_CONT);
  RETURN_IF_ERROR(Drive(/*until_taken=*/false));
  RETURN_IF_ERROR(ResultStatus());
  RETURN_IF_ERROR(CheckHead());  // an answer without a body
  return std::move(response_);
}

absl::Status Exchange::Drive(bool until_taken) {
  const NoSigpipe no_sigpipe;
  window_start_ = Clock::now();
  window_moved_ = moved_ + header_bytes_;
  for (;;) {
    int running = 0;
    const CURLMcode code = curl_multi_perform(handles_->multi(), &running);
    if (code != CURLM_OK) return Internal("libcurl: {}", curl_multi_strerror(code));
    CollectResult();
    if (done_ || (until_taken && pending_.empty())) return absl::OkStatus();
    RETURN_IF_ERROR(CheckTime());
    curl_multi_poll(handles_->multi(), nullptr, 0, kPollMilliseconds, nullptr);
  }
}

absl::Status Exchange::CheckTime() {
  if (request_.stopped && request_.stopped()) return Cancelled("stopped");
  const Clock::time_point now = Clock::now();
  if (now >= request_.deadline) return DeadlineExceeded("no complete answer in time");
  if (request_.timeout.count() > 0) {
    if (now - started_ < request_.timeout) return absl::OkStatus();
    return DeadlineExceeded("no complete answer within {} ms", request_.timeout.count());
  }
  if (now - window_start_ < options_.stall_timeout) return absl::OkStatus();
  const uint64_t moved = moved_ + header_bytes_;
  if (moved - window_moved_ < options_.stall_bytes)
    return DeadlineExceeded("stalled: {} bytes in {} ms", moved - window_moved_,
                            options_.stall_timeout.count());
  window_start_ = now;
  window_moved_ = moved;
  return absl::OkStatus();
}

void Exchange::CollectResult() {
  int left = 0;
  while (const CURLMsg* message = curl_multi_info_read(handles_->multi(), &left)) {
    if (message->msg != CURLMSG_DONE) continue;
    done_ = true;
    result_ = message->data.result;
  }
}

absl::Status Exchange::ResultStatus() const {
  RETURN_IF_ERROR(intake_status_);
  if (result_ == CURLE_OK || cut_) return absl::OkStatus();
  return CurlStatus(result_, error_text_[0] != 0 ? error_text_ : curl_easy_strerror(result_));
}

size_t Exchange::OnHeader(std::string_view line) {
  header_bytes_ += line.size();
  if (header_bytes_ > kMaxHeaderBytes) {
    intake_status_ = ResourceExhausted("more than {} bytes of headers", kMaxHeaderBytes);
    return 0;
  }
  if (line.starts_with("HTTP/")) {  // after a 1xx answer the final one
    response_.headers.Clear();
    long status = 0;
    curl_easy_getinfo(handles_->easy(), CURLINFO_RESPONSE_CODE, &status);
    response_.status = static_cast<int>(status);
  } else if (const size_t colon = line.find(':'); colon != std::string_view::npos) {
    response_.headers.Add(std::string(line.substr(0, colon)),
                          std::string(Trim(line.substr(colon + 1))));
  }
  return line.size();
}

absl::Status Exchange::CheckHead() {
  if (intake_.check == nullptr || head_checked_ || response_.status / 100 != 2)
    return absl::OkStatus();
  head_checked_ = true;
  return (*intake_.check)(response_);
}

size_t Exchange::OnBody(ByteSpan bytes) {
  const bool success = response_.status / 100 == 2;
  if (success && intake_.sink != nullptr) {
    const Clock::time_point start = Clock::now();
    intake_status_ = CheckHead();
    if (intake_status_.ok()) intake_status_ = (*intake_.sink)(bytes);
    window_start_ += Clock::now() - start;
    return intake_status_.ok() ? bytes.size() : 0;
  }
  const size_t room = intake_.limit - response_.body.size();
  response_.body.append(AsText(bytes.first(std::min(room, bytes.size()))));
  if (bytes.size() <= room) return bytes.size();
  if (success) intake_status_ = ResourceExhausted("an answer of more than {} bytes", intake_.limit);
  cut_ = true;
  return 0;
}

size_t Exchange::OnRead(MutableByteSpan room) {
  if (pending_.empty()) return body_ended_ ? 0 : CURL_READFUNC_PAUSE;
  const size_t n = std::min(room.size(), pending_.size());
  std::memcpy(room.data(), pending_.data(), n);
  pending_ = pending_.subspan(n);
  return n;
}

bool Exchange::OnSeek(curl_off_t offset) {
  if (offset != 0 || whole_body_.data() == nullptr) return false;
  pending_ = whole_body_;
  return true;
}

size_t Exchange::HeaderCallback(char* data, size_t size, size_t count, void* self) {
  return static_cast<Exchange*>(self)->OnHeader({data, size * count});
}

size_t Exchange::WriteCallback(char* data, size_t size, size_t count, void* self) {
  return static_cast<Exchange*>(self)->OnBody(AsBytes({data, size * count}));
}

size_t Exchange::ReadCallback(char* data, size_t size, size_t count, void* self) {
  return static_cast<Exchange*>(self)->OnRead({reinterpret_cast<std::byte*>(data), size * count});
}

int Exchange::SeekCallback(void* self, curl_off_t offset, int origin) {
  const bool done = origin == SEEK_SET && static_cast<Exchange*>(self)->OnSeek(offset);
  return done ? CURL_SEEKFUNC_OK : CURL_SEEKFUNC_FAIL;
}

int Exchange::ProgressCallback(void* self, curl_off_t, curl_off_t down, curl_off_t, curl_off_t up) {
  static_cast<Exchange*>(self)->moved_ = static_cast<uint64_t>(down + up);
  return 0;
}

}  // namespace kapsule::http
