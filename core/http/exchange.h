// One request and its answer on libcurl handles. Private to this folder.
#pragma once

#include <curl/curl.h>

#include <chrono>
#include <memory>
#include <optional>

#include "core/http/client.h"
#include "core/http/handles.h"

namespace kapsule::http {

// How the body of the answer is taken.
struct Intake {
  const Sink* sink = nullptr;        // of 2xx answers
  const HeadCheck* check = nullptr;  // before the sink
  size_t limit = 0;                  // of what is kept
};

// Not thread-safe. The request's url and body must outlive the exchange.
class Exchange {
 public:
  Exchange(std::shared_ptr<HandlePool> pool, const Options& options, const Request& request,
           Intake intake);
  ~Exchange();  // breaks the connection where the exchange has not ended

  // Before the first Drive. `size` is that of the body, nullopt where unknown;
  // `has_body` false sends none.
  absl::Status Start(bool has_body, std::optional<uint64_t> size);

  // Hands `bytes` to the connection; FailedPrecondition where the exchange
  // ended before it took them all.
  absl::Status Push(ByteSpan bytes);
  // Ends the body and waits for the end of the answer.
  absl::StatusOr<Response> Finish();
  // The body from memory, which libcurl may send again on a new connection.
  void SetWholeBody(ByteSpan bytes);
  // The server answered, or the connection broke.
  bool done() const { return done_; }

 private:
  absl::Status SetOptions(bool has_body, std::optional<uint64_t> size);
  absl::Status SetTls();
  absl::Status SetHeaders(bool has_body);
  absl::Status Drive(bool until_taken);
  absl::Status CheckTime();
  absl::Status CheckHead();
  void CollectResult();
  absl::Status ResultStatus() const;

  size_t OnHeader(std::string_view line);
  size_t OnBody(ByteSpan bytes);
  size_t OnRead(MutableByteSpan room);
  bool OnSeek(curl_off_t offset);
  static size_t HeaderCallback(char* data, size_t size, size_t count, void* self);
  static size_t WriteCallback(char* data, size_t size, size_t count, void* self);
  static size_t ReadCallback(char* data, size_t size, size_t count, void* self);
  static int SeekCallback(void* self, curl_off_t offset, int origin);
  static int ProgressCallback(void* self, curl_off_t, curl_off_t down, curl_off_t, curl_off_t up);

  using Clock = std::chrono::steady_clock;

  // Constant after construction.
  const std::shared_ptr<HandlePool> pool_;
  const Options& options_;
  const Request& request_;
  const Intake intake_;

  std::unique_ptr<Handles> handles_;
  curl_slist* header_list_ = nullptr;
  char error_text_[CURL_ERROR_SIZE] = {};

  ByteSpan pending_;     // of the body, not yet taken by libcurl
  ByteSpan whole_body_;  // where it can be sent again
  bool body_ended_ = false;

  Response response_;
  size_t header_bytes_ = 0;
  bool head_checked_ = false;
  absl::Status intake_status_;  // why a callback stopped the transfer
  bool cut_ = false;            // an error's body was cut at the limit

  uint64_t moved_ = 0;         // bytes in both directions, without headers
  uint64_t window_moved_ = 0;  // the sum at the start of the stall window
  Clock::time_point window_start_, started_;

  bool done_ = false;
  CURLcode result_ = CURLE_OK;
};

}  // namespace kapsule::http
