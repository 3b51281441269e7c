// OpenSSL 3 objects behind owners and Statuses; for core/crypt itself.
#pragma once

#include <openssl/evp.h>
#include <openssl/types.h>

#include <memory>
#include <type_traits>

#include "core/base/secret.h"

namespace kapsule::crypt {

template <auto kFree>
struct Freer {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using CipherContext = std::unique_ptr<EVP_CIPHER_CTX, Freer<EVP_CIPHER_CTX_free>>;
using MacContext = std::unique_ptr<EVP_MAC_CTX, Freer<EVP_MAC_CTX_free>>;
using KeyContext = std::unique_ptr<EVP_PKEY_CTX, Freer<EVP_PKEY_CTX_free>>;
using Bio = std::unique_ptr<BIO, Freer<BIO_free_all>>;
using UniqueKey = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;

// Algorithms looked up once for the process: a fetch takes locks and allocates,
// so it has no place on a path that runs for every chunk. Null where OpenSSL
// was built without the algorithm.
const EVP_CIPHER* Aes256Ctr();
const EVP_CIPHER* AesGcm(size_t key_bytes);   // 16, 24 or 32
const EVP_CIPHER* AesWrap(size_t key_bytes);  // RFC 3394; 16, 24 or 32

// Internal, or ResourceExhausted where OpenSSL had no memory (a full SecretArena):
// "what failed", and what OpenSSL left in its queue is dropped: it may quote input.
absl::Status OpensslError(const std::string& what);

// HKDF-SHA-256 (RFC 5869), `size` bytes.
absl::StatusOr<Secret> HkdfSha256(ByteSpan key, ByteSpan salt, ByteSpan info, size_t size);

// The one-step KDF of NIST SP 800-56C with SHA-256, as RFC 7518 section 4.6 uses
// it (Concat KDF).
absl::StatusOr<Secret> ConcatKdfSha256(ByteSpan shared_secret, ByteSpan info, size_t size);

// The bytes of a span, array or string as OpenSSL takes them, const where they are.
template <typename Bytes>
auto* U8(Bytes&& bytes) {
  using Element = std::remove_pointer_t<decltype(bytes.data())>;
  using Byte = std::conditional_t<std::is_const_v<Element>, const unsigned char, unsigned char>;
  return reinterpret_cast<Byte*>(bytes.data());
}

}  // namespace kapsule::crypt
