// What one reading thread owns.
#pragma once

#include <array>
#include <optional>
#include <span>

#include "core/archive/index.h"
#include "core/blob/chunk_opener.h"
#include "core/blob/direct_file.h"

namespace kapsule::fuse {

// Memory for the ciphertext and tags of one read. Not thread-safe.
class ReadScratch {
 public:
  // Reads of up to kMaxPiece, rounded to whole chunks, fit.
  static constexpr size_t kMaxPiece = 1 << 20;

  MutableByteSpan Ciphertext(size_t size) {
    if (!ciphertext_) ciphertext_.emplace(2 * kMaxPiece);
    return ciphertext_->bytes().first(size);
  }
  std::span<archive::Tag> Tags(size_t count) { return std::span(tags_).first(count); }

 private:
  std::optional<blob::AlignedBuffer> ciphertext_;  // many threads never need it
  std::array<archive::Tag, blob::VerifiedChunks::kMax> tags_;
};

}  // namespace kapsule::fuse
