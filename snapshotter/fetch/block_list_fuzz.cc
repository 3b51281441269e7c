// A list of blocks from the disk: taken apart, and made again as it was. The digest
// at its end is put right, so that what stands before it is looked at.
#include <algorithm>
#include <cstdlib>

#include "snapshotter/fetch/block_list.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  const ByteSpan input(reinterpret_cast<const std::byte*>(data), size);
  Bytes bytes(input.begin(), input.end());
  (void)fetch::BlockList::Decode(bytes);
  if (size < 32) return 0;
  const oci::Digest digest = oci::Digest::Of(ByteSpan(bytes).first(size - 32));
  std::copy(digest.raw().begin(), digest.raw().end(), bytes.end() - 32);
  const auto list = fetch::BlockList::Decode(bytes);
  if (list.ok() && list->Encode() != bytes) std::abort();
  return 0;
}
