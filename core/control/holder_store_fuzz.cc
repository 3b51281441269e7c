// Requests of any bytes and any number of descriptors, one after the other:
// each is answered, and the table stays as large as it says.
#include <cstdlib>

#include "core/control/holder_store.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  static const auto out = new std::array<std::byte, control::kMaxHolderAnswer>;
  static const auto store = new control::HolderStore(16);
  store->Clear();
  // Each request: its length, a byte for descriptors (two bits) and sender.
  while (size >= 2) {
    const size_t length = std::min<size_t>(data[0], size - 2);
    const auto from = (data[1] & 4) != 0 ? control::Requester::kRoot : control::Requester::kOwnUser;
    UniqueFd fds[control::kMaxHeldFds];
    for (UniqueFd& fd : fds) fd = UniqueFd(1'000'000);  // not a descriptor: closing it is harmless
    const ByteSpan request(reinterpret_cast<const std::byte*>(data + 2), length);
    const auto answer = store->Handle(from, request, std::span(fds).first(data[1] & 3), *out);
    if (answer.bytes < control::kHolderAnswerHeader || answer.bytes > out->size()) std::abort();
    if (static_cast<uint8_t>((*out)[0]) > 16) std::abort();
    if (answer.fds.size() > control::kMaxHeldFds) std::abort();
    if (store->fds() > 16 || store->names() > store->fds()) std::abort();
    data += 2 + length;
    size -= 2 + length;
  }
  store->Clear();
  if (store->fds() != 0 || store->names() != 0) std::abort();
  return 0;
}
