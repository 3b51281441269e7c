// RSA and EC keys in files.
#pragma once

#include <openssl/types.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/base/secret.h"

namespace kapsule::crypt {

struct EvpPkeyFree {
  void operator()(EVP_PKEY* key) const;
};
// Shared, immutable; OpenSSL lets threads use one EVP_PKEY together.
using Key = std::shared_ptr<EVP_PKEY>;

// A PEM or DER file: SubjectPublicKeyInfo, PKCS#1 RSA public key, or an X.509
// certificate. RSA of 2,048 to 16,384 bits; EC on P-256, P-384 or P-521.
//   NotFound         no such file
//   InvalidArgument  another content (a private key is named as such)
absl::StatusOr<Key> LoadPublicKey(const std::filesystem::path& path);
absl::StatusOr<Key> ParsePublicKey(std::string_view bytes, const std::string& name);

// A PEM or DER file: PKCS#8 (also encrypted), PKCS#1, SEC1. `password` is for
// encrypted ones. PermissionDenied: wrong or missing password.
absl::StatusOr<Key> LoadPrivateKey(const std::filesystem::path& path, const Secret& password = {});
absl::StatusOr<Key> ParsePrivateKey(const Secret& bytes, const Secret& password,
                                    const std::string& name);

// "rsa-2048", "rsa-3072", "rsa-4096", "ec-p256", "ec-p384", "ec-p521".
absl::StatusOr<Key> GenerateKey(const std::string& type);
std::vector<std::string> KeyTypes();

Secret PrivatePem(const Key& key);      // PKCS#8
std::string PublicPem(const Key& key);  // SubjectPublicKeyInfo

// First 16 hex digits of the SHA-256 of the SubjectPublicKeyInfo: names a key
// in logs.
std::string Fingerprint(const Key& key);

}  // namespace kapsule::crypt
