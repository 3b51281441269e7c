// AES-256-CTR and AES-256-GMAC on processors whose AES and carry-less multiplication
// work on 64 bytes at once (x86-64 with AVX-512, VAES and VPCLMULQDQ): twice to four
// times as fast as what OpenSSL 3.0 has (docs/adr/0008). Elsewhere, and for what is
// rare, layer_cipher.h and chunk_mac.cc use OpenSSL. No table look-up and no branch
// depends on a secret.
#pragma once

#include <array>
#include <cstdint>

#include "core/base/secret.h"

namespace kapsule::crypt {

// Whether the two classes may be used: asks the processor and the kernel, once.
bool HasWideAes();

// Both are for where HasWideAes() is true. They hold their key in a Secret, so not
// beyond a fork(2), and in a release build leave nothing of it on the stack or in
// vector registers. `key` has 32 bytes; std::bad_alloc as of Secret. Thread-safe.
class WideCtr {
 public:
  explicit WideCtr(ByteSpan key);
  // out = in XOR key stream, from the first byte of the block that the 128-bit
  // number (counter_high, counter_low) stands for, big-endian, on. The counters of
  // all blocks must have the same upper half. `in` may be `out`.
  void Apply(uint64_t counter_high, uint64_t counter_low, ByteSpan in, MutableByteSpan out) const;

 private:
  const Secret keys_;  // of the rounds
};

class WideGmac {
 public:
  using Iv = std::array<std::byte, 12>;
  using Tag = std::array<std::byte, 16>;

  explicit WideGmac(ByteSpan key);
  // Of `bytes` as additional data, without plaintext (NIST SP 800-38D).
  Tag TagOf(const Iv& iv, ByteSpan bytes) const;

 private:
  const Secret keys_;  // of the rounds, and the powers of the hash key
};

}  // namespace kapsule::crypt
