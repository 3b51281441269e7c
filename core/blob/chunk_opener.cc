#include "core/blob/chunk_opener.h"

#include <algorithm>
#include <utility>

namespace kapsule::blob {
namespace {

// Chunks are decrypted right after they were verified, this much at a time: it
// is in the cache of the core then.
constexpr uint64_t kStep = 64 << 10;

}  // namespace

ChunkRange ChunksOf(const archive::IndexHeader& header, uint64_t offset, size_t size) {
  const uint64_t unit = header.chunk_size;
  ChunkRange range;
  range.begin = AlignDown(offset, unit);
  range.end = std::min(AlignUp(offset + size, unit), header.covered_length);
  range.first = range.begin / unit;
  range.count = CeilDiv(range.size(), unit);
  return range;
}

absl::StatusOr<std::unique_ptr<ChunkOpener>> ChunkOpener::Make(const crypt::LayerKey& key,
                                                               const archive::IndexHeader& header) {
  ASSIGN_OR_RETURN(crypt::LayerCipher cipher, crypt::LayerCipher::Create(key));
  ASSIGN_OR_RETURN(crypt::ChunkMac mac, crypt::ChunkMac::Create(key, header.salt, header.chunk_size,
                                                                header.covered_length));
  return std::unique_ptr<ChunkOpener>(new ChunkOpener(std::move(cipher), std::move(mac), header));
}

absl::Status ChunkOpener::Verify(const ChunkRange& range, ByteSpan stored,
                                 std::span<const archive::Tag> tags, VerifiedChunks* known) {
  if (stored.size() != range.size() || tags.size() != range.count)
    return Internal("{} bytes and {} tags for {} chunks", stored.size(), tags.size(), range.count);
  for (size_t i = 0; i < range.count; ++i) {
    if (known != nullptr && known->Has(range.first + i)) continue;
    const uint64_t at = i * chunk_size_;
    const ByteSpan chunk = stored.subspan(at, std::min(chunk_size_, stored.size() - at));
    const absl::Status good = mac_.Verify(range.first + i, chunk, tags[i]);
    if (!good.ok())
      return Annotate(
          good, fmt::format("chunk {} at byte {} of the layer", range.first + i, range.begin + at));
    if (known != nullptr) known->Add(range.first + i);
  }
  return absl::OkStatus();
}

absl::Status ChunkOpener::Open(const ChunkRange& range, ByteSpan stored,
                               std::span<const archive::Tag> tags, uint64_t offset,
                               MutableByteSpan out, VerifiedChunks* known) {
  if (offset < range.begin || out.size() > range.end - offset)
    return Internal("{} bytes at byte {} of chunks from {} to {}", out.size(), offset, range.begin,
                    range.end);
  const uint64_t end = offset + out.size();
  const uint64_t step = std::max(chunk_size_, kStep);
  for (uint64_t at = AlignDown(offset, step); at < end; at += step) {
    ChunkRange part;
    part.begin = std::max(at, range.begin);
    part.end = std::min(at + step, range.end);
    part.first = part.begin / chunk_size_;
    part.count = CeilDiv(part.size(), chunk_size_);
    const ByteSpan bytes = stored.subspan(part.begin - range.begin, part.size());
    RETURN_IF_ERROR(Verify(part, bytes, tags.subspan(part.first - range.first, part.count), known));
    const uint64_t from = std::max(part.begin, offset), to = std::min(part.end, end);
    RETURN_IF_ERROR(cipher_.Apply(from, bytes.subspan(from - part.begin, to - from),
                                  out.subspan(from - offset, to - from)));
  }
  return absl::OkStatus();
}

std::unique_ptr<ChunkOpener> OpenerPool::Take(uint64_t layer) {
  const absl::MutexLock lock(&mu_);
  for (auto it = idle_.begin(); it != idle_.end(); ++it) {
    if (it->layer != layer) continue;
    std::unique_ptr<ChunkOpener> opener = std::move(it->opener);
    idle_.erase(it);
    return opener;
  }
  return nullptr;
}

void OpenerPool::GiveBack(uint64_t layer, std::unique_ptr<ChunkOpener> opener) {
  std::list<Idle> added, oldest;
  added.push_back({layer, std::move(opener)});
  const absl::MutexLock lock(&mu_);
  idle_.splice(idle_.begin(), added);
  if (idle_.size() > limit_) oldest.splice(oldest.begin(), idle_, std::prev(idle_.end()));
}

void OpenerPool::Forget(uint64_t layer) {
  std::list<Idle> gone;
  const absl::MutexLock lock(&mu_);
  for (auto it = idle_.begin(); it != idle_.end();) {
    const auto next = std::next(it);
    if (it->layer == layer) gone.splice(gone.end(), idle_, it);
    it = next;
  }
}

size_t OpenerPool::size() const {
  const absl::MutexLock lock(&mu_);
  return idle_.size();
}

}  // namespace kapsule::blob
