// The messages between kapsule-snapshotter and kapsule-fetch
// (proto/kapsule/v1/fetch.proto): one a packet on a SOCK_SEQPACKET pair
// (MakeSocketPair of control_wire.h), bounded, with their descriptors counted.
// Thread-safe: any thread may send, and the packets of several senders never mix.
#pragma once

#include <vector>

#include "core/base/file.h"
#include "kapsule/v1/fetch.pb.h"

namespace kapsule::control {

inline constexpr size_t kMaxFetchMessageBytes = 64 * 1024;  // tokens are long
inline constexpr int kMaxFetchSources = 16;                 // and credentials

struct ReceivedFetchRequest {
  v1::FetchRequest message;
  std::vector<UniqueFd> fds;  // as many as the message names
};

// InvalidArgument: no id, no or an unknown request, a digest or root that is not
// 64 lower-case hex digits, a size or timeout of 0, no source or too many of
// them, credentials without host, or another number of descriptors than the
// message names (1 of Connect, else 0).
absl::Status CheckFetchRequest(const v1::FetchRequest& request, size_t fds);

//   InvalidArgument  a request that CheckFetchRequest() refuses, or too long
//   Unavailable      the peer is gone
absl::Status SendFetchRequest(int socket, const v1::FetchRequest& request,
                              const std::vector<int>& fds);

// Waits for a request. The caller passes it to CheckFetchRequest(): a bad one that
// has an id can still be answered.
//   InvalidArgument  not a request, or too long
//   Unavailable      the peer is gone
absl::StatusOr<ReceivedFetchRequest> ReceiveFetchRequest(int socket);

struct ReceivedFetchReply {
  v1::FetchReply message;
  std::vector<UniqueFd> fds;  // the file, of an Open that succeeded; else none
};

// The answer to request `id`; `status` is taken apart by StatusOf().
v1::FetchReply MakeFetchReply(uint64_t id, const absl::Status& status);
absl::Status StatusOf(const v1::FetchReply& reply);

// Errors as SendFetchRequest() and ReceiveFetchRequest().
absl::Status SendFetchReply(int socket, const v1::FetchReply& reply,
                            const std::vector<int>& fds = {});
absl::StatusOr<ReceivedFetchReply> ReceiveFetchReply(int socket);

}  // namespace kapsule::control
