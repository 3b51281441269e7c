// The first bytes say how much each lane takes for itself before, and in what
// pieces all of them take the rest; the digests must be OpenSSL's.
#include <openssl/evp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "core/crypt/sha256_lanes.h"

namespace {
using namespace kapsule;

constexpr size_t kMaxLanes = 6;

crypt::Sha256::Digest OpensslDigestOf(ByteSpan bytes) {
  crypt::Sha256::Digest digest;
  if (EVP_Digest(bytes.data(), bytes.size(), reinterpret_cast<unsigned char*>(digest.data()),
                 nullptr, EVP_sha256(), nullptr) != 1)
    std::abort();
  return digest;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ByteSpan input(reinterpret_cast<const std::byte*>(data), size);
  const auto next = [&input]() -> size_t {
    if (input.empty()) return 0;
    const auto value = static_cast<size_t>(input.front());
    input = input.subspan(1);
    return value;
  };
  const size_t count = 1 + next() % kMaxLanes;
  std::vector<crypt::Sha256> hashes(count);
  std::vector<Bytes> taken(count);
  std::vector<crypt::Sha256*> pointers;
  const size_t in_step = next() % 2;
  for (size_t i = 0; i < count; ++i) {
    taken[i] = Bytes(in_step == 1 ? next() % 4 * 64 : next(), static_cast<std::byte>(i));
    hashes[i].Update(taken[i]);
    pointers.push_back(&hashes[i]);
  }
  while (!input.empty()) {
    const size_t length = next();
    const ByteSpan part = input.first(std::min(input.size(), length * 3));
    input = input.subspan(part.size());
    crypt::UpdateAll(pointers, part);
    for (Bytes& lane : taken) lane.insert(lane.end(), part.begin(), part.end());
  }
  for (size_t i = 0; i < count; ++i)
    if (hashes[i].Finish() != OpensslDigestOf(taken[i])) std::abort();
  return 0;
}
