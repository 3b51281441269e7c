// Chunks of ciphertext in memory: verified, then decrypted.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <array>
#include <atomic>
#include <list>
#include <memory>
#include <span>

#include "core/archive/index.h"
#include "core/crypt/layer_cipher.h"

namespace kapsule::blob {

// The whole chunks that hold a range of the covered range.
struct ChunkRange {
  uint64_t begin = 0, end = 0;  // bytes of the layer
  uint64_t first = 0;           // index of the first chunk
  size_t count = 0;
  size_t size() const { return end - begin; }
};
// `size` bytes from `offset` on are inside the covered range; size is not 0.
ChunkRange ChunksOf(const archive::IndexHeader& header, uint64_t offset, size_t size);

// Which of up to kMax successive chunks, by their index, have been verified in
// memory that nobody writes to. Thread-safe, but for Clear().
class VerifiedChunks {
 public:
  static constexpr size_t kMax = 512;
  bool Has(uint64_t chunk) const {
    return (WordOf(chunk).load(std::memory_order_relaxed) & BitOf(chunk)) != 0;
  }
  void Add(uint64_t chunk) { WordOf(chunk).fetch_or(BitOf(chunk), std::memory_order_relaxed); }
  void Clear() {
    for (auto& word : words_) word.store(0, std::memory_order_relaxed);
  }

 private:
  using Word = std::atomic<uint64_t>;
  static uint64_t BitOf(uint64_t chunk) { return uint64_t{1} << chunk % 64; }
  const Word& WordOf(uint64_t chunk) const { return words_[chunk % kMax / 64]; }
  Word& WordOf(uint64_t chunk) { return words_[chunk % kMax / 64]; }

  std::array<Word, kMax / 64> words_{};
};

// Cipher and MAC of one layer. Not thread-safe: one each thread.
class ChunkOpener {
 public:
  static absl::StatusOr<std::unique_ptr<ChunkOpener>> Make(const crypt::LayerKey& key,
                                                           const archive::IndexHeader& header);

  // Checks the chunks of `range`, which `stored` holds, against `tags`. Those that
  // `known` has are passed over, and those that are good are added to it.
  //   DataLoss  names the chunk
  absl::Status Verify(const ChunkRange& range, ByteSpan stored, std::span<const archive::Tag> tags,
                      VerifiedChunks* known = nullptr);
  // Verify() of the chunks that hold `out`, and their plaintext from `offset` of the
  // layer on. `stored` holds `range`, and may be `out` itself where that is all of it.
  // After an error `out` is anything.
  absl::Status Open(const ChunkRange& range, ByteSpan stored, std::span<const archive::Tag> tags,
                    uint64_t offset, MutableByteSpan out, VerifiedChunks* known = nullptr);
  // Plaintext of ciphertext that has been verified, or the reverse.
  absl::Status Crypt(uint64_t offset, ByteSpan in, MutableByteSpan out) {
    return cipher_.Apply(offset, in, out);
  }

 private:
  ChunkOpener(crypt::LayerCipher cipher, crypt::ChunkMac mac, const archive::IndexHeader& header)
      : cipher_(std::move(cipher)), mac_(std::move(mac)), chunk_size_(header.chunk_size) {}

  crypt::LayerCipher cipher_;
  crypt::ChunkMac mac_;
  const uint64_t chunk_size_;
};

// Openers that no thread uses just now, of all layers together: a further layer
// costs none until it is read, and at most `limit` are kept. Thread-safe.
class OpenerPool {
 public:
  explicit OpenerPool(size_t limit = 64) : limit_(limit) {}

  std::unique_ptr<ChunkOpener> Take(uint64_t layer) ABSL_LOCKS_EXCLUDED(mu_);  // null: none
  void GiveBack(uint64_t layer, std::unique_ptr<ChunkOpener> opener) ABSL_LOCKS_EXCLUDED(mu_);
  void Forget(uint64_t layer) ABSL_LOCKS_EXCLUDED(mu_);  // and with it what was made of its key
  size_t size() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Idle {
    uint64_t layer = 0;
    std::unique_ptr<ChunkOpener> opener;
  };
  const size_t limit_;
  mutable absl::Mutex mu_;                     // openers are destroyed without it
  std::list<Idle> idle_ ABSL_GUARDED_BY(mu_);  // most recent first
};

}  // namespace kapsule::blob
