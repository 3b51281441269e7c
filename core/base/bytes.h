// Integers in buffers, checked arithmetic, hex and base64.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/status.h"

namespace kapsule {

using Bytes = std::vector<std::byte>;
using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;

static_assert(std::endian::native == std::endian::little, "stored integers are little-endian");

inline ByteSpan AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view AsText(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Little-endian integers; the caller has checked that they fit.
template <typename T>
T LoadLe(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
void StoreLe(void* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}
inline uint64_t LoadBe64(const void* from) { return __builtin_bswap64(LoadLe<uint64_t>(from)); }
inline void StoreBe64(void* to, uint64_t value) { StoreLe(to, __builtin_bswap64(value)); }
inline void StoreBe32(void* to, uint32_t value) { StoreLe(to, __builtin_bswap32(value)); }

// Sums and products that say when they do not fit.
inline std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}
inline std::optional<uint64_t> CheckedMul(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// `unit` is a power of two; the caller knows that the result fits.
constexpr uint64_t AlignUp(uint64_t n, uint64_t unit) { return (n + unit - 1) & ~(unit - 1); }
constexpr uint64_t AlignDown(uint64_t n, uint64_t unit) { return n & ~(unit - 1); }
constexpr uint64_t CeilDiv(uint64_t n, uint64_t unit) { return n / unit + (n % unit != 0); }

std::string ToHex(ByteSpan bytes);  // lower case
// InvalidArgument: odd length, or a character that is not 0-9a-f.
absl::StatusOr<std::string> FromHex(std::string_view hex);

// RFC 4648 section 4, padded, and section 5 (URL-safe), unpadded. Decoding is
// strict: wrong alphabet, padding or trailing bits are InvalidArgument. Not
// constant-time; the bytes that a key is read from stay in the returned string,
// so use DecodeBase64ToSecret() (secret.h) for those.
std::string EncodeBase64(ByteSpan bytes);
std::string EncodeBase64Url(ByteSpan bytes);
absl::StatusOr<std::string> DecodeBase64(std::string_view text);
absl::StatusOr<std::string> DecodeBase64Url(std::string_view text);

// The decoded length and bytes, written to `out`, which holds at least
// text.size() / 4 * 3 + 3 bytes.
absl::StatusOr<size_t> DecodeBase64Into(std::string_view text, bool url, std::byte* out);

}  // namespace kapsule
