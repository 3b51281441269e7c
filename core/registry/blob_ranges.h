// Byte ranges of one blob, read from the first of several hosts that gives them.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/oci/digest.h"
#include "core/registry/credential_source.h"
#include "core/registry/hosts.h"
#include "core/registry/range_host.h"

namespace kapsule::registry {

// A host with its connections, which the blobs of a registry can share: they hold
// no credential.
struct ConnectedHost {
  Host host;
  std::shared_ptr<const http::Client> client;
};

// The hosts that blobs may be pulled from. What `host` says of TLS and of time to
// connect comes before `options`. FailedPrecondition: an authority's file cannot be
// read; the message names it.
absl::StatusOr<std::vector<ConnectedHost>> ConnectHosts(const std::vector<Host>& hosts,
                                                        const http::Options& options);

// Connections for ranges: less than 64 KiB a second over 5 seconds is a stall, and
// 10 seconds are enough to connect. HTTP/1.1: a transfer has its connection for
// itself either way, and libcurl moves more bytes so than by HTTP/2.
http::Options RangeConnections();

struct RangeOptions {
  std::chrono::milliseconds first_delay{200};  // between rounds, doubled up to 10 s
  int max_rounds = 0;  // at the hosts, in one read; 0: as many as the time allows
  // How much of a blob is read and thrown away at a host that ignores ranges.
  uint64_t max_skip = 16 << 20;
  // How long the host that worked last is asked before those that stand first.
  std::chrono::milliseconds keep_host{60'000};
};

struct RangeBlob {
  std::string host;  // as in the image's name: "docker.io"
  std::string repository;
  oci::Digest digest;
  uint64_t size = 0;
};

// The limits of one read. `stopped` is asked some ten times a second.
struct ReadLimits {
  std::chrono::steady_clock::time_point deadline;
  std::function<bool()> stopped = nullptr;
};

// Credentials for a host ("docker.io" for Docker Hub's), as of CredentialSource.
using HostCredentialSource = std::function<NextCredentials(const std::string& host)>;

// Thread-safe: any number of ranges may be read together.
class BlobRanges {
 public:
  // No request is made. InvalidArgument: no host, or a url that cannot be one.
  static absl::StatusOr<std::unique_ptr<BlobRanges>> Open(RangeBlob blob,
                                                          const std::vector<ConnectedHost>& hosts,
                                                          const HostCredentialSource& credentials,
                                                          const RangeOptions& options);

  // Gives bytes [offset, offset + size) to `sink`, in order, as they arrive; it is
  // called on this thread. Bytes that it took before an error stay taken. They are
  // not checked: that is the caller's, by digest.
  // Hosts are asked in their order until one answers; where the registry itself
  // fails in a way that may pass (or a host that has worked), again until the
  // deadline. Messages name blob, registry and host, and no credential.
  //   PermissionDenied    401, 403, or the token service refuses us
  //   NotFound            404
  //   Unavailable         no connection, broken, 408, 429 or 5xx, up to the deadline
  //   DeadlineExceeded    stalled, or nothing at the deadline
  //   DataLoss            answers that cannot be of this blob
  //   FailedPrecondition  TLS, a host without ranges, another answer
  //   InvalidArgument     a redirect that is not followed
  //   OutOfRange          the range is not inside the blob
  //   Cancelled           `stopped` said so
  //   others              the sink's own
  absl::Status Read(uint64_t offset, uint64_t size, const http::Sink& sink,
                    const ReadLimits& limits);

  const RangeBlob& blob() const { return blob_; }
  // How often a host asked who we are.
  uint64_t challenges() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Round;

  BlobRanges(RangeBlob blob, RangeOptions options)
      : blob_(std::move(blob)), options_(std::move(options)) {}
  absl::Status ReadRounds(RangeCursor& cursor, const http::Request& limits);
  Round AskHosts(RangeCursor& cursor, const http::Request& limits);
  absl::Status AskHost(RangeHost& host, RangeCursor& cursor, const http::Request& limits) const;
  std::vector<size_t> Order();
  void Prefer(size_t host);

  const RangeBlob blob_;
  const RangeOptions options_;
  std::vector<std::unique_ptr<RangeHost>> hosts_;  // constant after Open()

  absl::Mutex mu_;
  size_t preferred_ ABSL_GUARDED_BY(mu_) = 0;
  Clock::time_point preferred_until_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::registry
