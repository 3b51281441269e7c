// Any bytes as a header: refused, or numbers whose layout is in order, does not
// overflow and encodes to the same bytes.
#include <cstdlib>

#include "core/archive/index.h"

namespace {

using namespace kapsule::archive;

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckTable(const Table& table, const IndexLayout& layout, uint64_t covered) {
  uint64_t previous_pages = 0;
  for (const Table::Level& level : table.levels) {
    Require(level.length > 0 && level.offset >= covered);
    Require(level.offset + level.length <= layout.header_offset);
    if (previous_pages != 0) Require(level.length == previous_pages * kDigestSize);
    previous_pages = PageCount(level);
  }
  Require(table.levels.empty() || previous_pages == 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto header = IndexHeader::Decode(bytes);
  if (!header.ok()) return 0;
  const auto again = header->Encode();
  Require(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));

  const IndexLayout layout = LayoutOf(*header);
  Require(layout.blocks.entries * header->block_size >= header->covered_length);
  Require(layout.tags.levels.empty() != header->encrypted);
  CheckTable(layout.blocks, layout, header->covered_length);
  CheckTable(layout.tags, layout, header->covered_length);
  Require(layout.blob_size == layout.header_offset + kHeaderSize);
  Require(layout.blob_size > header->covered_length && layout.blob_size < uint64_t{1} << 44);
  return 0;
}
