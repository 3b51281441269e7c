// The messages between kapsule-snapshotter and kapsule-fuse
// (proto/kapsule/v1/dataplane.proto): one a packet on a SOCK_SEQPACKET pair,
// bounded, with their descriptors counted. Thread-safe: any thread may send,
// and the packets of several senders never mix.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/base/file.h"
#include "kapsule/v1/dataplane.pb.h"

namespace kapsule::control {

inline constexpr size_t kMaxMessageBytes = 8 * 1024;
inline constexpr size_t kMaxErrorText = 2 * 1024;  // longer texts are cut

// Both ends of a control connection, close-on-exec.
struct SocketPair {
  UniqueFd ours, theirs;
};
absl::StatusOr<SocketPair> MakeSocketPair();

// What a layer was opened with, as a memfd of Open holds it and the holder keeps
// it: {"annotations":{…},"remote":true}.
struct LayerRecord {
  std::string annotations;  // JSON
  bool remote = false;
};
inline constexpr size_t kMaxRecordExtra = 64;  // bytes beside the annotations
std::string RecordToJson(const LayerRecord& record);
// Looks at what is around the annotations only. Bare ones, as they were kept before
// there were records, are a layer that is not remote.
//   InvalidArgument  neither
absl::StatusOr<LayerRecord> RecordFromJson(std::string_view json);

struct ReceivedRequest {
  v1::DataPlaneRequest message;
  std::vector<UniqueFd> fds;  // as many as the message names
};

// InvalidArgument: no id, no or an unknown request, a digest that is not 64
// lower-case hex digits, a size or timeout of 0, or another number of
// descriptors than the message names.
absl::Status CheckRequest(const v1::DataPlaneRequest& request, size_t fds);

//   InvalidArgument  a request that CheckRequest() refuses
//   Unavailable      the peer is gone
absl::Status SendRequest(int socket, const v1::DataPlaneRequest& request,
                         const std::vector<int>& fds);

// Waits for a request. The caller passes it to CheckRequest(): a bad one that
// has an id can still be answered.
//   InvalidArgument  not a request, or too long
//   Unavailable      the peer is gone
absl::StatusOr<ReceivedRequest> ReceiveRequest(int socket);

// The answer to request `id`; `status` is taken apart by StatusOf().
v1::DataPlaneReply MakeReply(uint64_t id, const absl::Status& status);
absl::Status StatusOf(const v1::DataPlaneReply& reply);

// Errors as SendRequest() and ReceiveRequest().
absl::Status SendReply(int socket, const v1::DataPlaneReply& reply);
absl::StatusOr<v1::DataPlaneReply> ReceiveReply(int socket);

}  // namespace kapsule::control
