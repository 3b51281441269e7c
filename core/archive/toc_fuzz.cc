// Any bytes: ParseToc refuses them or gives a TOC that passes its own check and
// survives writing.
#include <cstdlib>

#include "core/archive/toc.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kapsule;
  using namespace kapsule::archive;
  constexpr uint64_t kTarLength = uint64_t{1} << 40;
  const auto toc = ParseToc(std::as_bytes(std::span(data, size)), kTarLength);
  if (!toc.ok()) return 0;
  if (!CheckToc(*toc, kTarLength).ok()) std::abort();
  const auto again = ParseToc(AsBytes(SerializeToc(*toc)), kTarLength);
  if (!again.ok() || again->entries.size() != toc->entries.size()) std::abort();
  return 0;
}
