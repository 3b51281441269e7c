// HMAC-SHA-256 (RFC 2104) over pieces: ocicrypt's MAC over the whole ciphertext,
// whose key is the layer key itself.
#pragma once

#include "core/base/secret.h"
#include "core/crypt/sha256_lanes.h"

namespace kapsule::crypt {

// Not thread-safe. Its states are as good as the key and live in a Secret.
class Hmac {
 public:
  // InvalidArgument: a key of more than 64 bytes.
  static absl::StatusOr<Hmac> Create(const Secret& key);
  Hmac(Hmac&&) noexcept = default;
  Hmac& operator=(Hmac&&) noexcept = default;

  void Update(ByteSpan bytes) { message()->Update(bytes); }
  // The hash that takes the message, for UpdateAll() together with others. It has
  // taken one block of 64 bytes before.
  Sha256* message();
  std::array<std::byte, 32> Finish();  // once

 private:
  struct States;
  explicit Hmac(Secret states) : states_(std::move(states)) {}
  States* states();

  Secret states_;
};

}  // namespace kapsule::crypt
