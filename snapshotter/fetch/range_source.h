// Where the bytes of a blob come from.
#pragma once

#include <absl/time/time.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "core/oci/digest.h"

namespace kapsule::fetch {

using Sink = std::function<absl::Status(ByteSpan)>;

struct ReadLimits {
  absl::Time deadline;
  std::function<bool()> stopped;  // asked now and then: nobody needs the rest
};

// One blob, as far away as it may be. Thread-safe: ranges are read in parallel.
class RangeSource {
 public:
  virtual ~RangeSource() = default;
  // Hands the bytes [offset, offset + length), in order, to `sink`, whose error
  // ends the transfer and is returned. OK only where all of them came.
  //   PermissionDenied, Unauthenticated, NotFound  asking again gains nothing
  //   Cancelled                                    stopped
  //   DeadlineExceeded, Unavailable, others        it may, later
  virtual absl::Status Read(uint64_t offset, uint64_t length, const Sink& sink,
                            const ReadLimits& limits) = 0;
  // How often credentials or tokens had to be had anew.
  virtual uint64_t auth_refreshes() const { return 0; }
};

struct PlaceCredentials {
  std::string place, username, password, identity_token, registry_token;
};

// What the snapshotter knows about a blob's places.
struct Origin {
  oci::Digest digest;
  uint64_t size = 0;
  std::vector<std::string> references;
  std::vector<PlaceCredentials> credentials;
};

// Makes no request. InvalidArgument: no reference of the origin can be used.
using SourceFactory =
    std::function<absl::StatusOr<std::shared_ptr<RangeSource>>(const Origin& origin)>;

}  // namespace kapsule::fetch
