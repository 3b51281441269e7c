// ocicrypt's private and public options of a layer (facts: ocicrypt spec.md).
#pragma once

#include <optional>
#include <string>

#include "core/crypt/layer_cipher.h"
#include "core/oci/annotations.h"

namespace kapsule::crypt {

// The JSON that every wrapped key holds.
struct PrivateOptions {
  LayerKey key;
  std::string digest;                  // advisory, of the plaintext
  std::optional<oci::IndexRef> index;  // member "kapsule"

  // The exact bytes to wrap.
  Secret Serialize() const;
  // InvalidArgument: not those options, or a key or nonce of another length.
  static absl::StatusOr<PrivateOptions> Parse(std::string_view json);
};

struct PublicOptions {
  std::array<std::byte, 32> hmac{};

  std::string Serialize() const;
  // Unimplemented: another cipher. InvalidArgument: not those options, or
  // options that carry a nonce (ocicrypt would let it override the private one).
  static absl::StatusOr<PublicOptions> Parse(std::string_view json);
};

}  // namespace kapsule::crypt
