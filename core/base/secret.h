// Bytes that must not leave the process: keys, nonces, passwords.
#pragma once

#include <cstddef>
#include <string_view>

#include "core/base/bytes.h"

namespace kapsule {

// Owns secret bytes, in the arena where there is one (secret_arena.h), else on
// pages of its own: locked where RLIMIT_MEMLOCK allows, left out of core dumps,
// zero in a forked child. Cleansed at the end. Movable, not copyable (Clone()
// says so where a copy is meant), not printable. Not thread-safe for writing.
class Secret {
 public:
  Secret() = default;
  explicit Secret(size_t size);  // zero bytes
  Secret(Secret&& other) noexcept;
  Secret& operator=(Secret&& other) noexcept;
  ~Secret();

  static Secret CopyOf(ByteSpan bytes);
  static Secret CopyOf(std::string_view text) { return CopyOf(AsBytes(text)); }
  Secret Clone() const { return CopyOf(bytes()); }

  ByteSpan bytes() const { return {data_, size_}; }
  MutableByteSpan bytes() { return {data_, size_}; }
  std::string_view text() const { return AsText(bytes()); }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  // Shortens to `size` bytes; the rest is cleansed.
  void Truncate(size_t size);

  // Equal length and content, in time that depends on the lengths only.
  bool Equals(ByteSpan other) const;

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  size_t mapped_ = 0;
};

// As DecodeBase64() and DecodeBase64Url(), without a copy outside a Secret.
absl::StatusOr<Secret> DecodeBase64ToSecret(std::string_view text, bool url);

// Fills `out` from the operating system's CSPRNG through OpenSSL.
absl::Status FillRandom(MutableByteSpan out);

// Overwrites a buffer that held a secret; not optimised away.
void Cleanse(void* data, size_t size);

}  // namespace kapsule
