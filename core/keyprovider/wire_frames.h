// The two frames of wire.h, byte by byte. Integers are little-endian.
//
// Request, 16 bytes, with one sealed memfd by SCM_RIGHTS:
//    0  4  magic "KAPK"
//    4  2  version: 1
//    6  2  type: 1, unwrap
//    8  4  length of the annotations' JSON in the memfd
//   12  4  zero
//
// Reply, 128 bytes and a message:
//    0  4  magic "KAPK"
//    4  2  version: 1
//    6  2  zero
//    8  4  status code (absl::StatusCode, as gRPC numbers them)
//   12  4  zero
//   16 32  layer key
//   48 16  nonce
//   64  4  1 where the options name an index, else 0 and zeros up to 120
//   68  4  index version
//   72  8  index offset
//   80  8  index length
//   88 32  index root
//  120  4  length of the message that follows: at most 4,096; 0 where OK
//  124  4  zero
#pragma once

#include "core/keyprovider/wire.h"

namespace kapsule::keyprovider {

inline constexpr size_t kRequestBytes = 16;
inline constexpr size_t kReplyHeaderBytes = 128;
inline constexpr size_t kMaxReplyMessage = 4096;
inline constexpr size_t kMaxReplyBytes = kReplyHeaderBytes + kMaxReplyMessage;

std::array<std::byte, kRequestBytes> EncodeRequest(uint32_t annotation_bytes);
// The length of the annotations. InvalidArgument: another frame, or a length
// above kMaxAnnotationBytes.
absl::StatusOr<uint32_t> DecodeRequest(ByteSpan frame);

// Messages are cut to kMaxReplyMessage.
Secret EncodeReply(const absl::StatusOr<UnwrappedLayer>& result);
// The provider's result. Internal: not a reply.
absl::StatusOr<UnwrappedLayer> DecodeReply(ByteSpan frame);

}  // namespace kapsule::keyprovider
