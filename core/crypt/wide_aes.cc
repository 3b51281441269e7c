#include "core/crypt/wide_aes.h"

#include <algorithm>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // of GCC 12's own immintrin.h
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace kapsule::crypt {

#if defined(__x86_64__)
namespace {

#define KAPSULE_WIDE_TARGET \
  __attribute__((target("aes,pclmul,ssse3,avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")))
// What has secrets in registers, and clears them at its end, is no part of its caller.
#define KAPSULE_WIDE KAPSULE_WIDE_TARGET __attribute__((noinline))
#define KAPSULE_WIDE_INLINE KAPSULE_WIDE_TARGET __attribute__((always_inline)) inline

constexpr size_t kBlock = 16, kWide = 64;
constexpr size_t kRounds = 14;
constexpr size_t kLanes = 8;    // vectors of counters under way at once
constexpr size_t kPowers = 32;  // blocks that are hashed for one reduction

struct RoundKeys {
  __m128i key[kRounds + 1];
};
struct alignas(kWide) GmacKeys {
  __m128i power[kPowers];  // kPowers-th first
  RoundKeys rounds;
};
static_assert(sizeof(GmacKeys) >= 256);  // SecretHeap then aligns to kWide

const RoundKeys& RoundsIn(const Secret& secret) {
  return *reinterpret_cast<const RoundKeys*>(secret.bytes().data());
}
const GmacKeys& GmacIn(const Secret& secret) {
  return *reinterpret_cast<const GmacKeys*>(secret.bytes().data());
}

// All vector registers: they held keys.
KAPSULE_WIDE_INLINE void ClearRegisters() {
  asm volatile(
      "vzeroall\n\t"
      "vpxord %%zmm16, %%zmm16, %%zmm16\n\tvpxord %%zmm17, %%zmm17, %%zmm17\n\t"
      "vpxord %%zmm18, %%zmm18, %%zmm18\n\tvpxord %%zmm19, %%zmm19, %%zmm19\n\t"
      "vpxord %%zmm20, %%zmm20, %%zmm20\n\tvpxord %%zmm21, %%zmm21, %%zmm21\n\t"
      "vpxord %%zmm22, %%zmm22, %%zmm22\n\tvpxord %%zmm23, %%zmm23, %%zmm23\n\t"
      "vpxord %%zmm24, %%zmm24, %%zmm24\n\tvpxord %%zmm25, %%zmm25, %%zmm25\n\t"
      "vpxord %%zmm26, %%zmm26, %%zmm26\n\tvpxord %%zmm27, %%zmm27, %%zmm27\n\t"
      "vpxord %%zmm28, %%zmm28, %%zmm28\n\tvpxord %%zmm29, %%zmm29, %%zmm29\n\t"
      "vpxord %%zmm30, %%zmm30, %%zmm30\n\tvpxord %%zmm31, %%zmm31, %%zmm31\n\t" ::
          : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
            "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19",
            "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28",
            "xmm29", "xmm30", "xmm31", "memory");
}

// FIPS 197, section 5.2: word i is word i - 8 plus what the words before it give.
KAPSULE_WIDE_INLINE __m128i NextKey(__m128i two_before, __m128i mixed) {
  two_before = _mm_xor_si128(two_before, _mm_slli_si128(two_before, 4));
  two_before = _mm_xor_si128(two_before, _mm_slli_si128(two_before, 8));
  return _mm_xor_si128(two_before, mixed);
}

template <int kRoundConstant>
KAPSULE_WIDE_INLINE void TwoKeys(__m128i*& next) {
  const __m128i rotated = _mm_aeskeygenassist_si128(next[-1], kRoundConstant);
  next[0] = NextKey(next[-2], _mm_shuffle_epi32(rotated, 0xff));
  const __m128i plain = _mm_aeskeygenassist_si128(next[0], 0);
  next[1] = NextKey(next[-1], _mm_shuffle_epi32(plain, 0xaa));
  next += 2;
}

KAPSULE_WIDE_INLINE void Expand(ByteSpan key, RoundKeys& rounds) {
  rounds.key[0] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(key.data()));
  rounds.key[1] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(key.data() + kBlock));
  __m128i* next = rounds.key + 2;
  TwoKeys<0x01>(next);
  TwoKeys<0x02>(next);
  TwoKeys<0x04>(next);
  TwoKeys<0x08>(next);
  TwoKeys<0x10>(next);
  TwoKeys<0x20>(next);
  const __m128i rotated = _mm_aeskeygenassist_si128(next[-1], 0x40);
  next[0] = NextKey(next[-2], _mm_shuffle_epi32(rotated, 0xff));
}

KAPSULE_WIDE_INLINE __m128i EncryptBlock(const RoundKeys& rounds, __m128i block) {
  block = _mm_xor_si128(block, rounds.key[0]);
  for (size_t i = 1; i < kRounds; ++i) block = _mm_aesenc_si128(block, rounds.key[i]);
  return _mm_aesenclast_si128(block, rounds.key[kRounds]);
}

// Bytes 15 … 0 of each block.
KAPSULE_WIDE_INLINE __m128i Reversing() {
  return _mm_set_epi64x(0x0001020304050607, 0x08090a0b0c0d0e0f);
}

// Key stream for kVectors times four blocks; the rounds of different blocks do not
// wait for each other.
template <size_t kVectors>
KAPSULE_WIDE_INLINE void KeyStream(const RoundKeys& rounds, __m512i counters, __m512i* stream) {
  const __m512i reversing = _mm512_broadcast_i32x4(Reversing());
  const __m512i first = _mm512_broadcast_i32x4(rounds.key[0]);
#pragma GCC unroll 8
  for (size_t i = 0; i < kVectors; ++i) {
    const __m512i number =
        _mm512_add_epi64(counters, _mm512_broadcast_i32x4(_mm_set_epi64x(0, 4 * i)));
    stream[i] = _mm512_xor_si512(_mm512_shuffle_epi8(number, reversing), first);
  }
#pragma GCC unroll 13
  for (size_t round = 1; round < kRounds; ++round) {
    const __m512i key = _mm512_broadcast_i32x4(rounds.key[round]);
#pragma GCC unroll 8
    for (size_t i = 0; i < kVectors; ++i) stream[i] = _mm512_aesenc_epi128(stream[i], key);
  }
  const __m512i last = _mm512_broadcast_i32x4(rounds.key[kRounds]);
#pragma GCC unroll 8
  for (size_t i = 0; i < kVectors; ++i) stream[i] = _mm512_aesenclast_epi128(stream[i], last);
}

KAPSULE_WIDE void ApplyCtr(const RoundKeys& rounds, uint64_t high, uint64_t low,
                           const std::byte* in, std::byte* out, size_t size) {
  __m512i counters =
      _mm512_add_epi64(_mm512_broadcast_i32x4(_mm_set_epi64x(static_cast<long long>(high),
                                                             static_cast<long long>(low))),
                       _mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0));
  const __m512i four = _mm512_broadcast_i32x4(_mm_set_epi64x(0, 4));
  const __m512i many = _mm512_broadcast_i32x4(_mm_set_epi64x(0, 4 * kLanes));
  for (; size >= kLanes * kWide; size -= kLanes * kWide) {
    __m512i stream[kLanes];
    KeyStream<kLanes>(rounds, counters, stream);
#pragma GCC unroll 8
    for (size_t i = 0; i < kLanes; ++i)
      _mm512_storeu_si512(out + i * kWide,
                          _mm512_xor_si512(stream[i], _mm512_loadu_si512(in + i * kWide)));
    counters = _mm512_add_epi64(counters, many);
    in += kLanes * kWide;
    out += kLanes * kWide;
  }
  while (size > 0) {
    const size_t n = std::min(size, kWide);
    const __mmask64 some = ~uint64_t{0} >> (kWide - n);
    __m512i stream;
    KeyStream<1>(rounds, counters, &stream);
    _mm512_mask_storeu_epi8(out, some, _mm512_xor_si512(stream, _mm512_maskz_loadu_epi8(some, in)));
    counters = _mm512_add_epi64(counters, four);
    in += n;
    out += n;
    size -= n;
  }
  ClearRegisters();
}

// GHASH as POLYVAL (RFC 8452, appendix A): on reversed blocks, with the hash key
// times x, a product needs no shift. Products are summed before they are reduced.
struct Product {
  __m128i high, low;
};

// x * H, both as POLYVAL has them.
KAPSULE_WIDE_INLINE __m128i TimesX(__m128i h) {
  const __m128i top = _mm_srai_epi32(_mm_shuffle_epi32(h, 0xff), 31);
  const __m128i carried = _mm_slli_si128(_mm_srli_epi64(h, 63), 8);
  const __m128i shifted = _mm_or_si128(_mm_slli_epi64(h, 1), carried);
  const __m128i polynomial = _mm_set_epi64x(static_cast<long long>(0xc200000000000000), 1);
  return _mm_xor_si128(shifted, _mm_and_si128(top, polynomial));
}

KAPSULE_WIDE_INLINE __m128i Reduce(Product product) {
  const __m128i polynomial = _mm_set_epi64x(static_cast<long long>(0xc200000000000000), 1);
  __m128i low = product.low;
  for (int i = 0; i < 2; ++i)
    low = _mm_xor_si128(_mm_shuffle_epi32(low, 0x4e), _mm_clmulepi64_si128(low, polynomial, 0x10));
  return _mm_xor_si128(product.high, low);
}

KAPSULE_WIDE_INLINE Product Join(__m128i high, __m128i middle, __m128i low) {
  return {_mm_xor_si128(high, _mm_srli_si128(middle, 8)),
          _mm_xor_si128(low, _mm_slli_si128(middle, 8))};
}

KAPSULE_WIDE_INLINE __m128i Multiply(__m128i a, __m128i b) {
  const __m128i middle =
      _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10));
  return Reduce(Join(_mm_clmulepi64_si128(a, b, 0x11), middle, _mm_clmulepi64_si128(a, b, 0x00)));
}

KAPSULE_WIDE_INLINE __m128i SumOfLanes(__m512i v) {
  const __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  return _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// One reduction for kPowers blocks: the sum of the products with the powers.
KAPSULE_WIDE_INLINE __m128i HashMany(const GmacKeys& keys, __m128i hash, const std::byte* bytes) {
  const __m512i reversing = _mm512_broadcast_i32x4(Reversing());
  __m512i high = _mm512_setzero_si512(), middle = high, low = high;
#pragma GCC unroll 8
  for (size_t i = 0; i < kPowers / 4; ++i) {
    __m512i blocks = _mm512_shuffle_epi8(_mm512_loadu_si512(bytes + i * kWide), reversing);
    if (i == 0) blocks = _mm512_xor_si512(blocks, _mm512_zextsi128_si512(hash));
    const __m512i powers = _mm512_loadu_si512(&keys.power[4 * i]);
    low = _mm512_xor_si512(low, _mm512_clmulepi64_epi128(blocks, powers, 0x00));
    high = _mm512_xor_si512(high, _mm512_clmulepi64_epi128(blocks, powers, 0x11));
    middle = _mm512_ternarylogic_epi64(middle, _mm512_clmulepi64_epi128(blocks, powers, 0x01),
                                       _mm512_clmulepi64_epi128(blocks, powers, 0x10), 0x96);
  }
  return Reduce(Join(SumOfLanes(high), SumOfLanes(middle), SumOfLanes(low)));
}

KAPSULE_WIDE_INLINE __m128i HashOne(const GmacKeys& keys, __m128i hash, __m128i block) {
  return Multiply(_mm_xor_si128(hash, block), keys.power[kPowers - 1]);
}

KAPSULE_WIDE void ComputeTag(const GmacKeys& keys, const WideGmac::Iv& iv, ByteSpan bytes,
                             WideGmac::Tag& tag) {
  const std::byte* at = bytes.data();
  size_t left = bytes.size();
  __m128i hash = _mm_setzero_si128();
  for (; left >= kPowers * kBlock; left -= kPowers * kBlock, at += kPowers * kBlock)
    hash = HashMany(keys, hash, at);
  while (left > 0) {
    const size_t n = std::min(left, kBlock);
    const __mmask16 some = static_cast<__mmask16>(0xffff >> (kBlock - n));
    hash = HashOne(keys, hash, _mm_shuffle_epi8(_mm_maskz_loadu_epi8(some, at), Reversing()));
    at += n;
    left -= n;
  }
  hash = HashOne(keys, hash, _mm_set_epi64x(static_cast<long long>(bytes.size() * 8), 0));
  const __m128i first = _mm_or_si128(_mm_maskz_loadu_epi8(0x0fff, iv.data()),
                                     _mm_set_epi32(0x01000000, 0, 0, 0));  // iv, counter 1
  const __m128i pad = EncryptBlock(keys.rounds, first);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(tag.data()),
                   _mm_xor_si128(pad, _mm_shuffle_epi8(hash, Reversing())));
  ClearRegisters();
}

KAPSULE_WIDE void MakeRoundKeys(ByteSpan key, RoundKeys& rounds) {
  Expand(key, rounds);
  ClearRegisters();
}

KAPSULE_WIDE void MakeGmacKeys(ByteSpan key, GmacKeys& keys) {
  Expand(key, keys.rounds);
  const __m128i hash_key =
      _mm_shuffle_epi8(EncryptBlock(keys.rounds, _mm_setzero_si128()), Reversing());
  keys.power[kPowers - 1] = TimesX(hash_key);
  for (size_t i = kPowers - 1; i > 0; --i)
    keys.power[i - 1] = Multiply(keys.power[i], keys.power[kPowers - 1]);
  ClearRegisters();
}

bool AskProcessor() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("aes") ||
      !__builtin_cpu_supports("pclmul"))
    return false;
  constexpr unsigned kVaes = 1u << 9, kVpclmulqdq = 1u << 10;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c & kVaes) != 0 && (c & kVpclmulqdq) != 0;
}

}  // namespace

bool HasWideAes() {
  static const bool has = AskProcessor();
  return has;
}

namespace {

Secret RoundKeysOf(ByteSpan key) {
  Secret secret(sizeof(RoundKeys));
  MakeRoundKeys(key, *reinterpret_cast<RoundKeys*>(secret.bytes().data()));
  return secret;
}

Secret GmacKeysOf(ByteSpan key) {
  Secret secret(sizeof(GmacKeys));
  MakeGmacKeys(key, *reinterpret_cast<GmacKeys*>(secret.bytes().data()));
  return secret;
}

}  // namespace

WideCtr::WideCtr(ByteSpan key) : keys_(RoundKeysOf(key)) {}

void WideCtr::Apply(uint64_t counter_high, uint64_t counter_low, ByteSpan in,
                    MutableByteSpan out) const {
  ApplyCtr(RoundsIn(keys_), counter_high, counter_low, in.data(), out.data(), in.size());
}

WideGmac::WideGmac(ByteSpan key) : keys_(GmacKeysOf(key)) {}

WideGmac::Tag WideGmac::TagOf(const Iv& iv, ByteSpan bytes) const {
  Tag tag;
  ComputeTag(GmacIn(keys_), iv, bytes, tag);
  return tag;
}

#else

// Nobody has one of these: none must look as if it worked.
bool HasWideAes() { return false; }
WideCtr::WideCtr(ByteSpan) { std::abort(); }
void WideCtr::Apply(uint64_t, uint64_t, ByteSpan, MutableByteSpan) const { std::abort(); }
WideGmac::WideGmac(ByteSpan) { std::abort(); }
WideGmac::Tag WideGmac::TagOf(const Iv&, ByteSpan) const { std::abort(); }

#endif

}  // namespace kapsule::crypt
