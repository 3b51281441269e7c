#include "core/keyprovider/wire_frames.h"

#include <algorithm>

namespace kapsule::keyprovider {
namespace {

constexpr uint32_t kMagic = 0x4b50414b;  // "KAPK"
constexpr uint16_t kVersion = 1;
constexpr uint16_t kTypeUnwrap = 1;
constexpr size_t kKeyBytes = 32, kNonceBytes = 16;
constexpr uint32_t kMaxStatusCode = 16;

absl::Status NotAReply() { return Internal("the key provider's answer is not a reply frame"); }

void PutLayer(const UnwrappedLayer& layer, std::byte* frame) {
  std::memcpy(frame + 16, layer.key.key.bytes().data(), kKeyBytes);
  std::memcpy(frame + 48, layer.key.nonce.bytes().data(), kNonceBytes);
  if (!layer.index) return;
  StoreLe<uint32_t>(frame + 64, 1);
  StoreLe<uint32_t>(frame + 68, layer.index->version);
  StoreLe<uint64_t>(frame + 72, layer.index->offset);
  StoreLe<uint64_t>(frame + 80, layer.index->length);
  std::memcpy(frame + 88, layer.index->root.raw().data(), layer.index->root.raw().size());
}

absl::StatusOr<UnwrappedLayer> TakeLayer(ByteSpan frame) {
  UnwrappedLayer layer{{Secret::CopyOf(frame.subspan(16, kKeyBytes)),
                        Secret::CopyOf(frame.subspan(48, kNonceBytes))},
                       std::nullopt};
  const uint32_t has_index = LoadLe<uint32_t>(&frame[64]);
  if (has_index > 1) return NotAReply();
  if (has_index == 0) return layer;
  oci::Digest::Raw root;
  std::memcpy(root.data(), &frame[88], root.size());
  layer.index = oci::IndexRef{LoadLe<uint32_t>(&frame[68]), LoadLe<uint64_t>(&frame[72]),
                              LoadLe<uint64_t>(&frame[80]), oci::Digest(root)};
  return layer;
}

}  // namespace

std::array<std::byte, kRequestBytes> EncodeRequest(uint32_t annotation_bytes) {
  std::array<std::byte, kRequestBytes> frame{};
  StoreLe(&frame[0], kMagic);
  StoreLe(&frame[4], kVersion);
  StoreLe(&frame[6], kTypeUnwrap);
  StoreLe(&frame[8], annotation_bytes);
  return frame;
}

absl::StatusOr<uint32_t> DecodeRequest(ByteSpan frame) {
  if (frame.size() != kRequestBytes || LoadLe<uint32_t>(&frame[0]) != kMagic)
    return InvalidArgument("not a key request");
  if (LoadLe<uint16_t>(&frame[4]) != kVersion || LoadLe<uint16_t>(&frame[6]) != kTypeUnwrap ||
      LoadLe<uint32_t>(&frame[12]) != 0)
    return InvalidArgument("a key request of another version or type");
  const uint32_t size = LoadLe<uint32_t>(&frame[8]);
  if (size > kMaxAnnotationBytes)
    return InvalidArgument("{} bytes of annotations, more than {}", size, kMaxAnnotationBytes);
  return size;
}

Secret EncodeReply(const absl::StatusOr<UnwrappedLayer>& result) {
  absl::Status status = result.status();
  if (result.ok() &&
      (result->key.key.size() != kKeyBytes || result->key.nonce.size() != kNonceBytes))
    status = Internal("a layer key of another length");
  const std::string message = Message(status).substr(0, kMaxReplyMessage);
  Secret reply(kReplyHeaderBytes + message.size());
  std::byte* const frame = reply.bytes().data();
  StoreLe(frame, kMagic);
  StoreLe(frame + 4, kVersion);
  StoreLe(frame + 8, static_cast<uint32_t>(status.code()));
  StoreLe(frame + 120, static_cast<uint32_t>(message.size()));
  if (status.ok()) PutLayer(*result, frame);
  std::memcpy(frame + kReplyHeaderBytes, message.data(), message.size());
  return reply;
}

absl::StatusOr<UnwrappedLayer> DecodeReply(ByteSpan frame) {
  if (frame.size() < kReplyHeaderBytes || LoadLe<uint32_t>(&frame[0]) != kMagic ||
      LoadLe<uint16_t>(&frame[4]) != kVersion)
    return NotAReply();
  const uint32_t code = LoadLe<uint32_t>(&frame[8]);
  if (code > kMaxStatusCode || LoadLe<uint32_t>(&frame[120]) != frame.size() - kReplyHeaderBytes)
    return NotAReply();
  if (code == 0 && frame.size() != kReplyHeaderBytes) return NotAReply();
  if (code == 0) return TakeLayer(frame);
  return absl::Status(static_cast<absl::StatusCode>(code),
                      std::string(AsText(frame.subspan(kReplyHeaderBytes))));
}

}  // namespace kapsule::keyprovider
