#include "core/crypt/evp.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

namespace kapsule::crypt {
namespace {

using Kdf = std::unique_ptr<EVP_KDF, Freer<EVP_KDF_free>>;
using KdfContext = std::unique_ptr<EVP_KDF_CTX, Freer<EVP_KDF_CTX_free>>;

OSSL_PARAM Octets(const char* name, ByteSpan bytes) {
  return OSSL_PARAM_construct_octet_string(name, const_cast<std::byte*>(bytes.data()),
                                           bytes.size());
}

absl::StatusOr<Secret> Derive(const char* algorithm, const OSSL_PARAM* params, size_t size) {
  const Kdf kdf(EVP_KDF_fetch(nullptr, algorithm, nullptr));
  const KdfContext context(EVP_KDF_CTX_new(kdf.get()));
  Secret out(size);
  if (context == nullptr || EVP_KDF_derive(context.get(), U8(out.bytes()), size, params) != 1)
    return OpensslError(fmt::format("derive a key by {}", algorithm));
  return out;
}

const EVP_CIPHER* BySize(size_t key_bytes, const EVP_CIPHER* a128, const EVP_CIPHER* a192,
                         const EVP_CIPHER* a256) {
  return key_bytes == 16 ? a128 : key_bytes == 24 ? a192 : key_bytes == 32 ? a256 : nullptr;
}

}  // namespace

// The fetched objects live as long as the process.
const EVP_CIPHER* Aes256Ctr() {
  static const EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-CTR", nullptr);
  return cipher;
}

const EVP_CIPHER* AesGcm(size_t key_bytes) {
  static const EVP_CIPHER* const a128 = EVP_CIPHER_fetch(nullptr, "AES-128-GCM", nullptr);
  static const EVP_CIPHER* const a192 = EVP_CIPHER_fetch(nullptr, "AES-192-GCM", nullptr);
  static const EVP_CIPHER* const a256 = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  return BySize(key_bytes, a128, a192, a256);
}

const EVP_CIPHER* AesWrap(size_t key_bytes) {
  static const EVP_CIPHER* const a128 = EVP_CIPHER_fetch(nullptr, "AES-128-WRAP", nullptr);
  static const EVP_CIPHER* const a192 = EVP_CIPHER_fetch(nullptr, "AES-192-WRAP", nullptr);
  static const EVP_CIPHER* const a256 = EVP_CIPHER_fetch(nullptr, "AES-256-WRAP", nullptr);
  return BySize(key_bytes, a128, a192, a256);
}

absl::Status OpensslError(const std::string& what) {
  const bool no_memory = ERR_GET_REASON(ERR_peek_last_error()) == ERR_R_MALLOC_FAILURE;
  ERR_clear_error();
  if (no_memory) return ResourceExhausted("{}: OpenSSL has no memory left", what);
  return Internal("{}: OpenSSL refused", what);
}

absl::StatusOr<Secret> HkdfSha256(ByteSpan key, ByteSpan salt, ByteSpan info, size_t size) {
  char digest[] = "SHA256";
  const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
                               Octets(OSSL_KDF_PARAM_KEY, key), Octets(OSSL_KDF_PARAM_SALT, salt),
                               Octets(OSSL_KDF_PARAM_INFO, info), OSSL_PARAM_construct_end()};
  return Derive("HKDF", params, size);
}

absl::StatusOr<Secret> ConcatKdfSha256(ByteSpan shared_secret, ByteSpan info, size_t size) {
  char digest[] = "SHA256";
  const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
                               Octets(OSSL_KDF_PARAM_KEY, shared_secret),
                               Octets(OSSL_KDF_PARAM_INFO, info), OSSL_PARAM_construct_end()};
  return Derive("SSKDF", params, size);
}

}  // namespace kapsule::crypt
