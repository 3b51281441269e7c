// How a JWE's content key travels to one recipient (RFC 7518, section 4):
// RSA-OAEP, RSA-OAEP-256, ECDH-ES+A128KW, +A192KW, +A256KW.
#pragma once

#include "core/base/json.h"
#include "core/base/secret.h"
#include "core/crypt/keys.h"

namespace kapsule::crypt {

struct WrappedCek {
  Json header;  // "alg", and "epk" for EC
  std::string encrypted_key;
};

// By RSA-OAEP or ECDH-ES+A256KW: what every stock tool reads.
absl::StatusOr<WrappedCek> WrapCek(const Secret& cek, const Key& recipient);

// What UnwrapCek() with these may cost, in RSA-2048 private-key operations, at
// least 1; 0 where algorithm, length or curve do not fit the key.
int UnwrapCost(const Json& header, ByteSpan encrypted_key, const Key& key);

// The content key of `cek_size` bytes. One answer for every way not to fit, so
// that a caller who may ask often learns nothing from it.
//   NotFound  wrapped for another key, by another algorithm, or altered
absl::StatusOr<Secret> UnwrapCek(const Json& header, ByteSpan encrypted_key, const Key& key,
                                 size_t cek_size);

}  // namespace kapsule::crypt
