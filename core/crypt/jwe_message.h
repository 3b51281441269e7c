// The serialisations of a JWE (RFC 7516, section 7): flattened and general JSON,
// compact. Nothing in them is secret.
#pragma once

#include <string>
#include <vector>

#include "core/base/json.h"

namespace kapsule::crypt {

inline constexpr size_t kMaxJweBytes = 64 * 1024;
inline constexpr size_t kMaxJweRecipients = 32;
inline constexpr size_t kJweIvBytes = 12;
inline constexpr size_t kJweTagBytes = 16;

struct JweRecipient {
  Json header;                // protected, shared and own members together
  std::string encrypted_key;  // bytes
};

struct JweMessage {
  std::string aad;  // the text that is authenticated with the content
  std::string iv, ciphertext, tag;
  size_t cek_bytes = 0;                  // of the content's key, as "enc" names its cipher
  std::vector<JweRecipient> recipients;  // 1 to kMaxJweRecipients
};

// InvalidArgument: none of the three forms, more than the limits, a member
// "zip" or "crit", a header member in two places, a recipient without "alg", or
// a content cipher other than AES-GCM.
absl::StatusOr<JweMessage> ParseJwe(std::string_view text);

// Flattened for one recipient, whose header is protected; general for several,
// whose own headers stand beside their keys. `aad` is the protected header.
std::string SerializeJwe(const JweMessage& message);

}  // namespace kapsule::crypt
