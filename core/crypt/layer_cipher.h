// ocicrypt's AES_256_CTR_HMAC_SHA256 at any offset, and the chunk tags that
// make reading at any offset safe (docs/format.md, "Cryptography").
#pragma once

#include <array>
#include <memory>

#include "core/base/secret.h"

namespace kapsule::crypt {

// What protects one layer: fresh for every encryption attempt.
struct LayerKey {
  Secret key;    // 32 bytes
  Secret nonce;  // 16 bytes: the initial counter block

  static absl::StatusOr<LayerKey> Generate();
  LayerKey Clone() const { return {key.Clone(), nonce.Clone()}; }
};

// AES-256-CTR with the counter of a byte offset. Not thread-safe: one each thread.
class LayerCipher {
 public:
  // InvalidArgument: key or nonce of another length; ResourceExhausted: no memory
  // for secrets.
  static absl::StatusOr<LayerCipher> Create(const LayerKey& key);
  LayerCipher(LayerCipher&&) noexcept;
  LayerCipher& operator=(LayerCipher&&) noexcept;
  ~LayerCipher();

  // out = in XOR key stream from byte `offset` of the layer on. The same for
  // both directions; `in` and `out` have equal length and may be the same.
  absl::Status Apply(uint64_t offset, ByteSpan in, MutableByteSpan out);

 private:
  struct State;
  explicit LayerCipher(std::unique_ptr<State> state);
  absl::Status ApplyByOpenssl(uint64_t offset, ByteSpan in, MutableByteSpan out);
  std::unique_ptr<State> state_;
};

using Commitment = std::array<std::byte, 32>;

// What the header of a layer says of its key and nonce, and no other key and
// nonce give: HKDF-SHA-256(IKM = key ‖ nonce, salt, info = "kapsule v1 commit").
// GMAC is not committing: without this one ciphertext could be made to open
// under two keys. It is public. InvalidArgument: a length that is not theirs.
absl::StatusOr<Commitment> CommitmentTo(const LayerKey& key, ByteSpan salt);

using ChunkTag = std::array<std::byte, 16>;

// AES-256-GMAC of ciphertext chunks under a key derived from the layer key.
// Not thread-safe: one each thread.
class ChunkMac {
 public:
  // MAC key = HKDF-SHA-256(IKM = layer key, salt, info = "kapsule v1 chunk mac"
  // ‖ le32 chunk_size ‖ le64 covered_length ‖ nonce). `salt` has 32 bytes.
  static absl::StatusOr<ChunkMac> Create(const LayerKey& key, ByteSpan salt, uint32_t chunk_size,
                                         uint64_t covered_length);
  ChunkMac(ChunkMac&&) noexcept;
  ChunkMac& operator=(ChunkMac&&) noexcept;
  ~ChunkMac();

  absl::StatusOr<ChunkTag> Tag(uint64_t index, ByteSpan ciphertext);
  // DataLoss where the tag is not that of this chunk at this index.
  absl::Status Verify(uint64_t index, ByteSpan ciphertext, const ChunkTag& tag);

 private:
  struct State;
  explicit ChunkMac(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kapsule::crypt
