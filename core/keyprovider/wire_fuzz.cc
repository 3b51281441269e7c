#include <cstdint>
#include <cstdlib>

#include "core/keyprovider/wire_frames.h"

// What a peer sends as request, as reply or as annotations.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  const ByteSpan input(reinterpret_cast<const std::byte*>(data), size);
  (void)keyprovider::DecodeRequest(input);
  const absl::StatusOr<keyprovider::UnwrappedLayer> layer = keyprovider::DecodeReply(input);
  if (layer.ok() && (layer->key.key.size() != 32 || layer->key.nonce.size() != 16)) std::abort();
  (void)keyprovider::AnnotationsFromJson(AsText(input));
  return 0;
}
