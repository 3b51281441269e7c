// Making the index of a layer while its covered range passes by
// (docs/format.md, "Index"). Memory does not grow with the layer: entries
// beyond a few pages wait in an unlinked temporary file.
#pragma once

#include <filesystem>
#include <memory>

#include "core/archive/index.h"
#include "core/archive/sink.h"

namespace kapsule::archive {

// Not thread-safe.
class IndexWriter {
 public:
  // `folder` holds the temporary files, which only appear once a table has more
  // than `memory_limit` bytes and which nobody else can open.
  explicit IndexWriter(std::filesystem::path folder, size_t memory_limit = 1 << 20);
  ~IndexWriter();

  // The next block's SHA-256 and the next chunk's tag, as stored.
  absl::Status AppendBlock(const oci::Digest& digest);
  absl::Status AppendTag(const Tag& tag);

  // Sends the index, header last, to `sink`; returns the header with both roots,
  // whose SHA-256 is the layer's root. Once.
  //   InvalidArgument  `header` (roots apart) is one that Decode() refuses, or
  //                    has another number of blocks or chunks than were appended
  absl::StatusOr<IndexHeader> Finish(IndexHeader header, const Sink& sink);

 private:
  class Spool;
  std::unique_ptr<Spool> blocks_, tags_;
};

}  // namespace kapsule::archive
