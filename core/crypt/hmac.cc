#include "core/crypt/hmac.h"

#include <algorithm>
#include <memory>

namespace kapsule::crypt {
namespace {

constexpr size_t kBlock = 64;
constexpr std::byte kInnerPad{0x36}, kOuterPad{0x5c};

}  // namespace

// It is never destroyed: the Secret that it lives in cleanses it.
struct Hmac::States {
  Sha256 inner, outer;
};

Hmac::States* Hmac::states() { return reinterpret_cast<States*>(states_.bytes().data()); }
Sha256* Hmac::message() { return &states()->inner; }

absl::StatusOr<Hmac> Hmac::Create(const Secret& key) {
  if (key.size() > kBlock) return InvalidArgument("an HMAC key of {} bytes", key.size());
  Secret pad(kBlock);
  std::ranges::copy(key.bytes(), pad.bytes().begin());
  for (std::byte& byte : pad.bytes()) byte ^= kInnerPad;
  static_assert(alignof(States) <= 16);  // as Secret's bytes are at least
  Hmac hmac{Secret(sizeof(States))};
  States* const states = std::construct_at(hmac.states());
  states->inner.Update(pad.bytes());
  for (std::byte& byte : pad.bytes()) byte ^= kInnerPad ^ kOuterPad;
  states->outer.Update(pad.bytes());
  return hmac;
}

std::array<std::byte, 32> Hmac::Finish() {
  Sha256::Digest inner = states()->inner.Finish();
  states()->outer.Update(inner);
  Cleanse(inner.data(), inner.size());
  return states()->outer.Finish();
}

}  // namespace kapsule::crypt
