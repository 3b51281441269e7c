// One host that ranges of one blob are read from. Private to this folder.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <chrono>
#include <memory>
#include <string>

#include "core/registry/hosts.h"
#include "core/registry/range_transfer.h"
#include "core/registry/transport.h"

namespace kapsule::registry {

// Thread-safe.
class RangeHost {
 public:
  using Clock = std::chrono::steady_clock;

  // `url` is the blob's at this host, `scope` that of its pulls.
  RangeHost(std::string name, std::string url, std::string scope, uint64_t max_skip,
            Endpoint endpoint);

  // One attempt at the rest of the range; the cursor moves with the bytes that its
  // sink took. Errors begin with the host's name; after Unavailable and
  // DeadlineExceeded another attempt may succeed.
  absl::Status Read(RangeCursor& cursor, const http::Request& limits);

  const std::string& name() const { return name_; }
  // Until then it asked to be left alone.
  Clock::time_point not_before() const;
  // It is known not to serve ranges that begin at `first`.
  bool RefusesRange(uint64_t first) const;
  bool has_worked() const;
  uint64_t challenges() const { return transport_.challenges(); }

 private:
  enum class Try { kDone, kAskRegistry };

  absl::Status ReadChecked(RangeCursor& cursor, const http::Request& limits);
  absl::StatusOr<Try> ReadRedirected(const std::string& url, RangeCursor& cursor,
                                     const http::Request& limits);
  absl::Status ReadFromRegistry(RangeCursor& cursor, const http::Request& limits);
  absl::Status Conclude(const RangeTransfer& transfer,
                        const absl::StatusOr<http::Response>& result);
  void RememberRedirect(const std::string& url);
  void ForgetRedirect(const std::string& url);

  const std::string name_, url_, scope_;
  const uint64_t max_skip_;
  const std::shared_ptr<const http::Client> client_;
  const Transport transport_;

  mutable absl::Mutex mu_;                     // never held over a transfer
  std::string redirect_ ABSL_GUARDED_BY(mu_);  // where the registry sent us
  Clock::time_point not_before_ ABSL_GUARDED_BY(mu_);
  bool ignores_ranges_ ABSL_GUARDED_BY(mu_) = false;
  bool has_worked_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace kapsule::registry
