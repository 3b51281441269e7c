// SHA-256 of the same bytes by several hashes at once. Building a layer needs up
// to three digests of every byte; one stream of SHA-NI leaves two thirds of the
// unit idle, and the message schedule is the same for all of them (docs/adr/0005).
#pragma once

#include <openssl/sha.h>

#include <array>
#include <span>

#include "core/base/bytes.h"

namespace kapsule::crypt {

// One SHA-256 on its way. A value: a copy goes on from the same place. The state
// is cleansed at the end. Not thread-safe.
class Sha256 {
 public:
  using Digest = std::array<std::byte, 32>;

  Sha256();
  Sha256(const Sha256&) = default;
  Sha256& operator=(const Sha256&) = default;
  ~Sha256();

  void Update(ByteSpan bytes);
  Digest Finish();  // once

 private:
  friend void UpdateAll(std::span<Sha256* const> hashes, ByteSpan bytes);
  SHA256_CTX state_;
};

// As Update(bytes) of each of `hashes`, which are different objects. It is faster
// than that where the processor has SHA-NI and all of them have taken the same
// number of bytes modulo 64, and as fast otherwise.
void UpdateAll(std::span<Sha256* const> hashes, ByteSpan bytes);

// Whether this processor can do so.
bool HasSha256Lanes();

}  // namespace kapsule::crypt
