// A SHA-256 state that can be copied out and advanced by our own code is only in
// OpenSSL's low-level interface, which version 3 calls deprecated.
#define OPENSSL_SUPPRESS_DEPRECATED

#include "core/crypt/sha256_lanes.h"

#include <algorithm>

#include "core/base/secret.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace kapsule::crypt {
namespace {

constexpr size_t kBlock = SHA256_CBLOCK;
constexpr size_t kMaxLanes = 3;  // what fits the 16 registers; more gain nothing

using State = SHA_LONG[8];  // a to h

#if defined(__x86_64__)

// FIPS 180-4, section 4.2.2.
alignas(16) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

#define KAPSULE_SHA_NI __attribute__((target("sha,sse4.1")))

// The instructions want a state as the words {a, b, e, f} and {c, d, g, h}.
struct Lane {
  __m128i abef, cdgh;
};

KAPSULE_SHA_NI Lane LoadLane(const State& state) {
  const __m128i dcba = _mm_loadu_si128(reinterpret_cast<const __m128i*>(&state[0]));
  const __m128i hgfe = _mm_loadu_si128(reinterpret_cast<const __m128i*>(&state[4]));
  const __m128i cdab = _mm_shuffle_epi32(dcba, 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(hgfe, 0x1B);
  return {_mm_alignr_epi8(cdab, efgh, 8), _mm_blend_epi16(efgh, cdab, 0xF0)};
}

KAPSULE_SHA_NI void StoreLane(const Lane& lane, State& state) {
  const __m128i feba = _mm_shuffle_epi32(lane.abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(lane.cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&state[0]), _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&state[4]), _mm_alignr_epi8(dchg, feba, 8));
}

// `w` becomes the four message words after the sixteen w, w1, w2, w3.
KAPSULE_SHA_NI inline __m128i NextWords(__m128i w, __m128i w1, __m128i w2, __m128i w3) {
  const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w, w1), _mm_alignr_epi8(w3, w2, 4));
  return _mm_sha256msg2_epu32(sum, w3);
}

// Advances kLanes states over the same blocks. The rounds of one state wait for
// each other, those of different states do not.
template <size_t kLanes>
KAPSULE_SHA_NI void Compress(const std::array<State*, kMaxLanes>& states, const std::byte* block,
                             size_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  Lane lanes[kLanes];
  for (size_t i = 0; i < kLanes; ++i) lanes[i] = LoadLane(*states[i]);
  for (; blocks > 0; --blocks, block += kBlock) {
    Lane before[kLanes];
    for (size_t i = 0; i < kLanes; ++i) before[i] = lanes[i];
    __m128i words[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i)
      words[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 16 * i)),
                                  big_endian);
#pragma GCC unroll 16
    for (size_t step = 0; step < 16; ++step) {  // of four rounds
      const __m128i round = _mm_load_si128(reinterpret_cast<const __m128i*>(&kRound[4 * step]));
      const __m128i low = _mm_add_epi32(words[step % 4], round);
      const __m128i high = _mm_shuffle_epi32(low, 0x0E);
#pragma GCC unroll 3
      for (size_t i = 0; i < kLanes; ++i)
        lanes[i].cdgh = _mm_sha256rnds2_epu32(lanes[i].cdgh, lanes[i].abef, low);
#pragma GCC unroll 3
      for (size_t i = 0; i < kLanes; ++i)
        lanes[i].abef = _mm_sha256rnds2_epu32(lanes[i].abef, lanes[i].cdgh, high);
      if (step < 12)
        words[step % 4] = NextWords(words[step % 4], words[(step + 1) % 4], words[(step + 2) % 4],
                                    words[(step + 3) % 4]);
    }
    for (size_t i = 0; i < kLanes; ++i) {
      lanes[i].abef = _mm_add_epi32(lanes[i].abef, before[i].abef);
      lanes[i].cdgh = _mm_add_epi32(lanes[i].cdgh, before[i].cdgh);
    }
  }
  for (size_t i = 0; i < kLanes; ++i) StoreLane(lanes[i], *states[i]);
}

bool AskProcessor() {
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_SSE4_1) == 0 || (c & bit_SSSE3) == 0)
    return false;
  constexpr unsigned kSha = 1u << 29;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & kSha) != 0;
}

void CompressLanes(const std::array<State*, kMaxLanes>& states, size_t lanes,
                   const std::byte* block, size_t blocks) {
  if (lanes == 1) return Compress<1>(states, block, blocks);
  if (lanes == 2) return Compress<2>(states, block, blocks);
  return Compress<3>(states, block, blocks);
}

#else

bool AskProcessor() { return false; }
void CompressLanes(const std::array<State*, kMaxLanes>&, size_t, const std::byte*, size_t) {}

#endif

// The low-level functions fail only for a null pointer.
void AddBits(SHA256_CTX& state, uint64_t bytes) {
  const uint64_t bits = ((uint64_t{state.Nh} << 32) | state.Nl) + bytes * 8;
  state.Nl = static_cast<SHA_LONG>(bits);
  state.Nh = static_cast<SHA_LONG>(bits >> 32);
}

}  // namespace

bool HasSha256Lanes() {
  static const bool has = AskProcessor();
  return has;
}

Sha256::Sha256() { SHA256_Init(&state_); }
Sha256::~Sha256() { Cleanse(&state_, sizeof(state_)); }

void Sha256::Update(ByteSpan bytes) { SHA256_Update(&state_, bytes.data(), bytes.size()); }

Sha256::Digest Sha256::Finish() {
  Digest digest;
  SHA256_Final(reinterpret_cast<unsigned char*>(digest.data()), &state_);
  return digest;
}

void UpdateAll(std::span<Sha256* const> hashes, ByteSpan bytes) {
  const auto update_each = [hashes](ByteSpan part) {
    if (part.empty()) return;
    for (Sha256* const hash : hashes) hash->Update(part);
  };
  const auto waiting = [](const Sha256* hash) { return hash->state_.num; };
  const bool in_step = std::ranges::all_of(
      hashes, [&](const Sha256* hash) { return waiting(hash) == waiting(hashes.front()); });
  if (hashes.size() < 2 || !in_step || !HasSha256Lanes()) return update_each(bytes);

  // OpenSSL keeps what does not fill a block, before and after the blocks.
  const size_t begun = waiting(hashes.front());
  const size_t head = std::min(bytes.size(), begun == 0 ? 0 : kBlock - begun);
  update_each(bytes.first(head));
  const ByteSpan rest = bytes.subspan(head);
  const size_t whole = AlignDown(rest.size(), kBlock);
  for (size_t at = 0; whole > 0 && at < hashes.size(); at += kMaxLanes) {
    const auto group = hashes.subspan(at, std::min(kMaxLanes, hashes.size() - at));
    std::array<State*, kMaxLanes> states{};
    for (size_t i = 0; i < group.size(); ++i) {
      states[i] = &group[i]->state_.h;
      AddBits(group[i]->state_, whole);
    }
    CompressLanes(states, group.size(), rest.data(), whole / kBlock);
  }
  update_each(rest.subspan(whole));
}

}  // namespace kapsule::crypt
