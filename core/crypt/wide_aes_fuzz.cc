// The first 48 bytes are key and counter, the rest is encrypted and tagged: both as
// OpenSSL does it. Where the processor has no wide AES, nothing is compared.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "core/crypt/evp.h"
#include "core/crypt/wide_aes.h"

namespace {
using namespace kapsule;
using namespace kapsule::crypt;

Bytes OpensslCtr(ByteSpan key, ByteSpan counter, ByteSpan in) {
  const CipherContext context(EVP_CIPHER_CTX_new());
  Bytes out(in.size());
  int n;
  if (EVP_EncryptInit_ex2(context.get(), Aes256Ctr(), U8(key), U8(counter), nullptr) != 1 ||
      EVP_EncryptUpdate(context.get(), U8(out), &n, U8(in), static_cast<int>(in.size())) != 1)
    std::abort();
  return out;
}

WideGmac::Tag OpensslGmac(ByteSpan key, const WideGmac::Iv& iv, ByteSpan in) {
  const CipherContext context(EVP_CIPHER_CTX_new());
  WideGmac::Tag tag;
  int n;
  if (EVP_EncryptInit_ex2(context.get(), AesGcm(32), U8(key), U8(iv), nullptr) != 1 ||
      EVP_EncryptUpdate(context.get(), nullptr, &n, U8(in), static_cast<int>(in.size())) != 1 ||
      EVP_EncryptFinal_ex(context.get(), U8(tag), &n) != 1 ||
      EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, 16, tag.data()) != 1)
    std::abort();
  return tag;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 48 || !HasWideAes()) return 0;
  const ByteSpan input(reinterpret_cast<const std::byte*>(data), size);
  const ByteSpan key = input.first(32), counter = input.subspan(32, 16), in = input.subspan(48);
  // Counters whose lower half overflows are not for WideCtr.
  const uint64_t low = LoadBe64(counter.data() + 8) >> 1;
  Bytes start(counter.begin(), counter.end());
  StoreBe64(start.data() + 8, low);
  Bytes out(in.size());
  WideCtr(key).Apply(LoadBe64(start.data()), low, in, out);
  if (out != OpensslCtr(key, start, in)) std::abort();
  WideGmac::Iv iv;
  std::copy_n(counter.begin(), iv.size(), iv.begin());
  if (WideGmac(key).TagOf(iv, in) != OpensslGmac(key, iv, in)) std::abort();
  return 0;
}
