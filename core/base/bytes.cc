#include "core/base/bytes.h"

#include <array>

namespace kapsule {
namespace {

constexpr char kStandard[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr char kUrl[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
constexpr char kHex[] = "0123456789abcdef";

constexpr std::array<int8_t, 256> Inverse(const char* alphabet) {
  std::array<int8_t, 256> inverse{};
  inverse.fill(-1);
  for (int i = 0; i < 64; ++i) inverse[static_cast<uint8_t>(alphabet[i])] = static_cast<int8_t>(i);
  return inverse;
}
constexpr auto kStandardInverse = Inverse(kStandard);
constexpr auto kUrlInverse = Inverse(kUrl);

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

std::string Encode(ByteSpan bytes, const char* alphabet, bool pad) {
  std::string out;
  out.reserve(bytes.size() / 3 * 4 + 4);
  for (size_t at = 0; at < bytes.size(); at += 3) {
    const size_t n = std::min<size_t>(3, bytes.size() - at);
    uint32_t group = 0;
    for (size_t i = 0; i < 3; ++i)
      group = group << 8 | (i < n ? std::to_integer<uint32_t>(bytes[at + i]) : 0);
    for (size_t i = 0; i <= n; ++i) out += alphabet[group >> (18 - 6 * i) & 63];
    if (pad) out.append(3 - n, '=');
  }
  return out;
}

}  // namespace

std::string ToHex(ByteSpan bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (std::byte b : bytes) {
    out += kHex[std::to_integer<int>(b >> 4)];
    out += kHex[std::to_integer<int>(b & std::byte{15})];
  }
  return out;
}

absl::StatusOr<std::string> FromHex(std::string_view hex) {
  if (hex.size() % 2 != 0) return InvalidArgument("hex of odd length {}", hex.size());
  std::string out(hex.size() / 2, '\0');
  for (size_t i = 0; i < out.size(); ++i) {
    const int high = HexDigit(hex[2 * i]), low = HexDigit(hex[2 * i + 1]);
    if (high < 0 || low < 0) return InvalidArgument("not lower-case hex at character {}", 2 * i);
    out[i] = static_cast<char>(high << 4 | low);
  }
  return out;
}

std::string EncodeBase64(ByteSpan bytes) { return Encode(bytes, kStandard, true); }
std::string EncodeBase64Url(ByteSpan bytes) { return Encode(bytes, kUrl, false); }

absl::StatusOr<size_t> DecodeBase64Into(std::string_view text, bool url, std::byte* out) {
  const auto& inverse = url ? kUrlInverse : kStandardInverse;
  if (!url) {
    if (text.size() % 4 != 0) return InvalidArgument("base64 of length {}", text.size());
    for (int i = 0; i < 2 && text.ends_with('='); ++i) text.remove_suffix(1);
  }
  if (text.size() % 4 == 1) return InvalidArgument("base64 of length {}", text.size());
  uint32_t bits = 0;
  int held = 0;
  size_t n = 0;
  for (char c : text) {
    const int digit = inverse[static_cast<uint8_t>(c)];
    if (digit < 0) return InvalidArgument("not a base64 character at {}", n * 4 / 3);
    bits = bits << 6 | static_cast<uint32_t>(digit);
    held += 6;
    if (held >= 8) {
      held -= 8;
      out[n++] = static_cast<std::byte>(bits >> held);
      bits &= (1u << held) - 1;
    }
  }
  if (bits != 0) return InvalidArgument("base64 with stray bits at its end");
  return n;
}

namespace {
absl::StatusOr<std::string> Decode(std::string_view text, bool url) {
  std::string out(text.size() / 4 * 3 + 3, '\0');
  ASSIGN_OR_RETURN(const size_t n,
                   DecodeBase64Into(text, url, reinterpret_cast<std::byte*>(out.data())));
  out.resize(n);
  return out;
}
}  // namespace

absl::StatusOr<std::string> DecodeBase64(std::string_view text) { return Decode(text, false); }
absl::StatusOr<std::string> DecodeBase64Url(std::string_view text) { return Decode(text, true); }

}  // namespace kapsule
