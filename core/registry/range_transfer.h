// One answer to a request for a range, believed in nothing that can be checked.
// Private to this folder.
#pragma once

#include <optional>
#include <string>

#include "core/http/client.h"

namespace kapsule::registry {

// The part of a range that is still wanted. Not thread-safe.
struct RangeCursor {
  uint64_t next, end;  // bytes of the blob
  const uint64_t blob_size;
  const http::Sink& sink;
  absl::Status sink_status{};  // its error ends the read

  bool done() const { return next == end; }
};

// Takes one answer. Not thread-safe.
class RangeTransfer {
 public:
  // A 200 in place of 206 is read up to the range where that begins before
  // `max_skip`.
  RangeTransfer(RangeCursor& cursor, uint64_t max_skip) : cursor_(cursor), max_skip_(max_skip) {}

  // What a request for the rest of the range says.
  std::string RangeHeader() const;

  // Of http::Client::Download().
  absl::Status Check(const http::Response& head);
  absl::Status Take(ByteSpan bytes);

  // How the transfer went, once Download() gave `result`; not OK where the cursor
  // is not done. Of answers that are no success it says nothing: FailedPrecondition.
  //   DataLoss     the answer contradicts itself or what was asked
  //   Unavailable  it ended too early
  absl::Status Finish(const absl::StatusOr<http::Response>& result) const;

  // The host sends whole blobs only, and this range begins too far in it.
  bool ignores_ranges() const { return ignores_ranges_; }

 private:
  absl::Status CheckPart(const http::Response& head) const;
  absl::Status CheckWhole(const http::Response& head);

  RangeCursor& cursor_;
  const uint64_t max_skip_;
  const uint64_t first_ = cursor_.next;
  uint64_t skip_ = 0;   // bytes before the range that are on their way
  bool whole_ = false;  // the answer is the blob, not the range
  bool enough_ = false;
  bool ignores_ranges_ = false;
  std::string host_;
};

}  // namespace kapsule::registry
