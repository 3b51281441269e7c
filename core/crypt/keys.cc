#include "core/crypt/keys.h"

#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <algorithm>

#include "core/base/file.h"
#include "core/crypt/evp.h"
#include "core/oci/digest.h"

namespace kapsule::crypt {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxKeyFile = 64 * 1024;
constexpr int kMinRsaBits = 2048, kMaxRsaBits = 16384;

struct GeneratedType {
  const char* name;
  int rsa_bits;
  const char* curve;
};
constexpr GeneratedType kGenerated[] = {{"rsa-2048", 2048, nullptr}, {"rsa-3072", 3072, nullptr},
                                        {"rsa-4096", 4096, nullptr}, {"ec-p256", 0, "P-256"},
                                        {"ec-p384", 0, "P-384"},     {"ec-p521", 0, "P-521"}};

using Certificate = std::unique_ptr<X509, Freer<X509_free>>;

// What DER function `decode` finds, where it uses all of `der`.
template <typename Decode>
auto DecodeAll(std::string_view der, Decode decode) -> decltype(decode(nullptr, 0)) {
  const auto* at = reinterpret_cast<const unsigned char*>(der.data());
  auto object = decode(&at, static_cast<long>(der.size()));
  if (at != reinterpret_cast<const unsigned char*>(der.data()) + der.size()) object.reset();
  return object;
}

UniqueKey DecodeSpki(std::string_view der) {
  return DecodeAll(der, [](const unsigned char** at, long size) {
    return UniqueKey(d2i_PUBKEY(nullptr, at, size));
  });
}

UniqueKey DecodeRsaPublic(std::string_view der) {
  return DecodeAll(der, [](const unsigned char** at, long size) {
    return UniqueKey(d2i_PublicKey(EVP_PKEY_RSA, nullptr, at, size));
  });
}

UniqueKey DecodeCertificate(std::string_view der) {
  const Certificate certificate = DecodeAll(der, [](const unsigned char** at, long size) {
    return Certificate(d2i_X509(nullptr, at, size));
  });
  return certificate == nullptr ? nullptr : UniqueKey(X509_get_pubkey(certificate.get()));
}

UniqueKey DecodePrivate(std::string_view der) {
  return DecodeAll(der, [](const unsigned char** at, long size) {
    return UniqueKey(d2i_AutoPrivateKey(nullptr, at, size));
  });
}

absl::StatusOr<UniqueKey> DecodePublicPem(std::string_view pem) {
  const Bio in(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  char *name = nullptr, *header = nullptr;
  unsigned char* data = nullptr;
  long size = 0;
  if (in == nullptr || PEM_read_bio(in.get(), &name, &header, &data, &size) != 1)
    return InvalidArgument("broken PEM");
  const std::string label = name;
  const std::string der(reinterpret_cast<char*>(data), static_cast<size_t>(size));
  OPENSSL_free(name);
  OPENSSL_free(header);
  OPENSSL_clear_free(data, static_cast<size_t>(size));
  if (label == "PUBLIC KEY") return DecodeSpki(der);
  if (label == "RSA PUBLIC KEY") return DecodeRsaPublic(der);
  if (label == "CERTIFICATE" || label == "X509 CERTIFICATE") return DecodeCertificate(der);
  return InvalidArgument("PEM of an unknown kind; use a public key or a certificate");
}

// The keys that we can wrap with; the reason where it is none.
absl::StatusOr<Key> Accept(UniqueKey key, const std::string& name) {
  ERR_clear_error();
  if (key == nullptr) return InvalidArgument("{}: not a key that we can read", name);
  const int type = EVP_PKEY_get_base_id(key.get());
  if (type == EVP_PKEY_RSA) {
    const int bits = EVP_PKEY_get_bits(key.get());
    if (bits < kMinRsaBits || bits > kMaxRsaBits)
      return InvalidArgument("{}: RSA of {} bits; use {} to {}", name, bits, kMinRsaBits,
                             kMaxRsaBits);
    return Key(std::move(key));
  }
  char group[64] = "";
  if (type == EVP_PKEY_EC) EVP_PKEY_get_group_name(key.get(), group, sizeof(group), nullptr);
  ERR_clear_error();
  const int curve = OBJ_sn2nid(group);
  if (curve == NID_X9_62_prime256v1 || curve == NID_secp384r1 || curve == NID_secp521r1)
    return Key(std::move(key));
  return InvalidArgument("{}: use RSA, or EC on P-256, P-384 or P-521", name);
}

struct PasswordPrompt {
  const Secret& password;
  bool asked = false;
};

int GivePassword(char* out, int size, int /*writing*/, void* prompt_pointer) {
  auto* const prompt = static_cast<PasswordPrompt*>(prompt_pointer);
  prompt->asked = true;
  if (prompt->password.empty() || prompt->password.size() > static_cast<size_t>(size)) return -1;
  std::memcpy(out, prompt->password.bytes().data(), prompt->password.size());
  return static_cast<int>(prompt->password.size());
}

absl::StatusOr<Secret> ReadKeyFile(const fs::path& path) {
  // O_NONBLOCK: a pipe in a folder of keys must not hold us up.
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(path, O_RDONLY | O_NONBLOCK));
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, path.string());
  if (!S_ISREG(st.st_mode)) return InvalidArgument("{}: not a regular file", path.string());
  if (static_cast<uint64_t>(st.st_size) > kMaxKeyFile)
    return InvalidArgument("{}: {} bytes are no key", path.string(), st.st_size);
  Secret bytes(static_cast<size_t>(st.st_size));
  const FileReader file(std::move(fd), bytes.size());
  const absl::Status read = file.ReadAt(0, bytes.bytes());
  if (!read.ok()) return Annotate(read, path.string());
  return bytes;
}

bool IsPem(std::string_view bytes) { return bytes.find("-----BEGIN ") != std::string_view::npos; }

std::string TextOf(const Bio& bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return size > 0 ? std::string(data, static_cast<size_t>(size)) : std::string();
}

}  // namespace

void EvpPkeyFree::operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }

absl::StatusOr<Key> ParsePublicKey(std::string_view bytes, const std::string& name) {
  if (bytes.size() > kMaxKeyFile)
    return InvalidArgument("{}: {} bytes are no key", name, bytes.size());
  const auto is_private = [&] {
    return InvalidArgument("{}: a private key; give the public key or a certificate", name);
  };
  if (IsPem(bytes)) {
    if (bytes.find("PRIVATE KEY-----") != std::string_view::npos) return is_private();
    absl::StatusOr<UniqueKey> key = DecodePublicPem(bytes);
    if (!key.ok()) return Annotate(key.status(), name);
    return Accept(*std::move(key), name);
  }
  UniqueKey key = DecodeSpki(bytes);
  if (key == nullptr) key = DecodeCertificate(bytes);
  if (key == nullptr) key = DecodeRsaPublic(bytes);
  if (key == nullptr && DecodePrivate(bytes) != nullptr) return is_private();
  return Accept(std::move(key), name);
}

absl::StatusOr<Key> ParsePrivateKey(const Secret& bytes, const Secret& password,
                                    const std::string& name) {
  PasswordPrompt prompt{password};
  if (bytes.empty()) return Accept(nullptr, name);
  const Bio in(BIO_new_mem_buf(bytes.bytes().data(), static_cast<int>(bytes.size())));
  if (in == nullptr) return OpensslError(name);
  UniqueKey key;
  if (IsPem(bytes.text())) {
    key.reset(PEM_read_bio_PrivateKey(in.get(), nullptr, GivePassword, &prompt));
  } else {
    key = DecodePrivate(bytes.text());
    if (key == nullptr)
      key.reset(d2i_PKCS8PrivateKey_bio(in.get(), nullptr, GivePassword, &prompt));
  }
  ERR_clear_error();
  if (key == nullptr && prompt.asked)
    return PermissionDenied("{}: encrypted, and {}", name,
                            password.empty() ? "no password was given" : "the password is wrong");
  return Accept(std::move(key), name);
}

absl::StatusOr<Key> LoadPublicKey(const fs::path& path) {
  ASSIGN_OR_RETURN(const Secret bytes, ReadKeyFile(path));
  return ParsePublicKey(bytes.text(), path.string());
}

absl::StatusOr<Key> LoadPrivateKey(const fs::path& path, const Secret& password) {
  ASSIGN_OR_RETURN(const Secret bytes, ReadKeyFile(path));
  return ParsePrivateKey(bytes, password, path.string());
}

absl::StatusOr<Key> GenerateKey(const std::string& type) {
  for (const GeneratedType& known : kGenerated) {
    if (type != known.name) continue;
    UniqueKey key(known.curve != nullptr ? EVP_EC_gen(known.curve)
                                         : EVP_RSA_gen(static_cast<unsigned>(known.rsa_bits)));
    if (key == nullptr) return OpensslError("generate a key");
    return Key(std::move(key));
  }
  return InvalidArgument("key type \"{}\": use {}", type, fmt::join(KeyTypes(), ", "));
}

std::vector<std::string> KeyTypes() {
  std::vector<std::string> names;
  for (const GeneratedType& type : kGenerated) names.emplace_back(type.name);
  return names;
}

Secret PrivatePem(const Key& key) {
  const Bio out(BIO_new(BIO_s_secmem()));  // cleansed when it grows and when it is freed
  if (out == nullptr || PEM_write_bio_PKCS8PrivateKey(out.get(), key.get(), nullptr, nullptr, 0,
                                                      nullptr, nullptr) != 1)
    return Secret();
  char* data = nullptr;
  const long size = BIO_get_mem_data(out.get(), &data);
  return Secret::CopyOf(std::string_view(data, static_cast<size_t>(std::max(size, 0L))));
}

std::string PublicPem(const Key& key) {
  const Bio out(BIO_new(BIO_s_mem()));
  if (out == nullptr || PEM_write_bio_PUBKEY(out.get(), key.get()) != 1) return "";
  return TextOf(out);
}

std::string Fingerprint(const Key& key) {
  unsigned char* der = nullptr;
  const int size = i2d_PUBKEY(key.get(), &der);
  if (size <= 0) return "";
  const oci::Digest digest =
      oci::Digest::Of({reinterpret_cast<const std::byte*>(der), static_cast<size_t>(size)});
  OPENSSL_free(der);
  return digest.hex().substr(0, 16);
}

}  // namespace kapsule::crypt
