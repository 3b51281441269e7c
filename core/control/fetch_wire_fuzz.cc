// A packet from the other end: taken apart, and made again as it was.
#include <algorithm>
#include <cstdlib>

#include "core/control/fetch_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  const ByteSpan bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto packet = control::DecodeFetchPacket(bytes);
  if (!packet.ok()) return 0;
  const Bytes again = control::EncodeFetchPacket(*packet);
  if (again.size() != size) std::abort();
  // Texts become printable; all else is the same.
  const bool has_text = std::holds_alternative<control::FetchFailed>(packet->body);
  if (!std::equal(again.begin(), has_text ? again.begin() + 56 : again.end(), bytes.begin()))
    std::abort();
  return 0;
}
