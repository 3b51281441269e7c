// Any bytes as a TOC: where ParseToc takes them, the metadata holds exactly its
// tree and nothing points outside.
#include <cstdlib>

#include "core/view/metadata_walk.h"
#include "core/view/view.h"

namespace {

using namespace kapsule;

constexpr uint64_t kTarLength = 1 << 20;  // as the mount test of this corpus

void Require(bool condition) {
  if (!condition) std::abort();
}

size_t Count(const archive::Toc& toc, archive::EntryType type) {
  size_t count = 0;
  for (const archive::TocEntry& entry : toc.entries) count += entry.type == type;
  return count;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto toc = archive::ParseToc(std::as_bytes(std::span(data, size)), kTarLength);
  if (!toc.ok()) return 0;
  const bool has_root = !toc->entries.empty() && toc->entries[0].path.empty();
  for (const bool seal : {false, true}) {
    const auto metadata = view::BuildMetadata(*toc, kTarLength, {seal});
    Require(metadata.ok());
    const auto walked = view::WalkMetadata(metadata->bytes, metadata->bytes.size() + kTarLength);
    Require(walked.ok());
    Require(walked->names + has_root == toc->entries.size());
    Require(walked->files == Count(*toc, archive::EntryType::kFile));
    Require(walked->symlinks == Count(*toc, archive::EntryType::kSymlink));
    Require(walked->directories ==
            Count(*toc, archive::EntryType::kDirectory) + (has_root ? 0 : 1));
  }
  return 0;
}
