#include "core/crypt/jwe_key.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/objects.h>
#include <openssl/params.h>
#include <openssl/rsa.h>

#include "core/crypt/evp.h"

namespace kapsule::crypt {
namespace {

using BigNumber = std::unique_ptr<BIGNUM, Freer<BN_free>>;

constexpr size_t kMaxPartyInfo = 1024;  // "apu", "apv"

struct Curve {
  const char* jwk_name;
  const char* group;
  size_t field_bytes;
  int cost;  // of an agreement, in RSA-2048 private-key operations
};
constexpr Curve kCurves[] = {
    {"P-256", "prime256v1", 32, 1}, {"P-384", "secp384r1", 48, 4}, {"P-521", "secp521r1", 66, 4}};

struct EcdhAlgorithm {
  const char* name;
  size_t wrap_key_bytes;
};
constexpr EcdhAlgorithm kEcdh[] = {
    {"ECDH-ES+A128KW", 16}, {"ECDH-ES+A192KW", 24}, {"ECDH-ES+A256KW", 32}};
constexpr EcdhAlgorithm kEcdhWritten = kEcdh[2];

const EcdhAlgorithm* FindEcdh(const std::string& alg) {
  for (const EcdhAlgorithm& algorithm : kEcdh)
    if (alg == algorithm.name) return &algorithm;
  return nullptr;
}

// The hash of an RSA algorithm; null for others.
const char* OaepHash(const std::string& alg) {
  return alg == "RSA-OAEP" ? "SHA1" : alg == "RSA-OAEP-256" ? "SHA256" : nullptr;
}

absl::Status DoesNotFit() {
  ERR_clear_error();
  return NotFound("the key is not of this recipient");
}

bool IsRsa(const Key& key) { return EVP_PKEY_get_base_id(key.get()) == EVP_PKEY_RSA; }

const Curve* CurveOf(const Key& key) {
  char group[64] = "";
  if (EVP_PKEY_get_base_id(key.get()) != EVP_PKEY_EC ||
      EVP_PKEY_get_group_name(key.get(), group, sizeof(group), nullptr) != 1)
    return nullptr;
  for (const Curve& curve : kCurves)
    if (OBJ_sn2nid(group) == OBJ_sn2nid(curve.group)) return &curve;
  return nullptr;
}

bool HasModulusLength(ByteSpan wrapped, const Key& key) {
  return wrapped.size() == static_cast<size_t>(EVP_PKEY_get_size(key.get()));
}

// The time of an RSA operation grows with the cube of the length.
int RsaCost(const Key& key) {
  constexpr int64_t kUnit = int64_t{2048} * 2048 * 2048;
  const int64_t bits = EVP_PKEY_get_bits(key.get());
  return static_cast<int>((bits * bits * bits + kUnit - 1) / kUnit);
}

// A context for OAEP with `hash` for label and mask.
KeyContext OaepContext(const Key& key, const char* hash, bool encrypt) {
  KeyContext context(EVP_PKEY_CTX_new_from_pkey(nullptr, key.get(), nullptr));
  if (context == nullptr ||
      (encrypt ? EVP_PKEY_encrypt_init(context.get()) : EVP_PKEY_decrypt_init(context.get())) !=
          1 ||
      EVP_PKEY_CTX_set_rsa_padding(context.get(), RSA_PKCS1_OAEP_PADDING) != 1 ||
      EVP_PKEY_CTX_set_rsa_oaep_md_name(context.get(), hash, nullptr) != 1 ||
      EVP_PKEY_CTX_set_rsa_mgf1_md_name(context.get(), hash, nullptr) != 1)
    return nullptr;
  return context;
}

absl::StatusOr<WrappedCek> WrapRsa(const Secret& cek, const Key& recipient) {
  const KeyContext context = OaepContext(recipient, "SHA1", /*encrypt=*/true);
  std::string wrapped(static_cast<size_t>(EVP_PKEY_get_size(recipient.get())), '\0');
  size_t size = wrapped.size();
  if (context == nullptr ||
      EVP_PKEY_encrypt(context.get(), U8(wrapped), &size, U8(cek.bytes()), cek.size()) != 1)
    return OpensslError("wrap a key by RSA-OAEP");
  wrapped.resize(size);
  return WrappedCek{Json{{"alg", "RSA-OAEP"}}, std::move(wrapped)};
}

absl::StatusOr<Secret> UnwrapRsa(const char* hash, ByteSpan wrapped, const Key& key,
                                 size_t cek_size) {
  if (!IsRsa(key) || !HasModulusLength(wrapped, key)) return DoesNotFit();
  const KeyContext context = OaepContext(key, hash, /*encrypt=*/false);
  Secret cek(wrapped.size());
  size_t size = cek.size();
  if (context == nullptr ||
      EVP_PKEY_decrypt(context.get(), U8(cek.bytes()), &size, U8(wrapped), wrapped.size()) != 1)
    return DoesNotFit();
  if (size != cek_size) return DoesNotFit();
  cek.Truncate(size);
  return cek;
}

void AppendWithLength(std::string_view text, std::string& out) {
  char length[4];
  StoreBe32(length, static_cast<uint32_t>(text.size()));
  out.append(length, sizeof(length)).append(text);
}

// OtherInfo of RFC 7518, section 4.6.2.
std::string OtherInfo(const EcdhAlgorithm& algorithm, std::string_view apu, std::string_view apv) {
  std::string info;
  AppendWithLength(algorithm.name, info);
  AppendWithLength(apu, info);
  AppendWithLength(apv, info);
  char bits[4];
  StoreBe32(bits, static_cast<uint32_t>(algorithm.wrap_key_bytes * 8));
  return info.append(bits, sizeof(bits));
}

// The key that wraps the content key, agreed between `ours` and `theirs`.
absl::StatusOr<Secret> Agree(EVP_PKEY* ours, EVP_PKEY* theirs, const Curve& curve,
                             const EcdhAlgorithm& algorithm, const std::string& other_info) {
  const KeyContext context(EVP_PKEY_CTX_new_from_pkey(nullptr, ours, nullptr));
  Secret shared(curve.field_bytes);  // Z, left-padded to the size of the field
  size_t size = shared.size();
  if (context == nullptr || EVP_PKEY_derive_init(context.get()) != 1 ||
      EVP_PKEY_derive_set_peer(context.get(), theirs) != 1 ||
      EVP_PKEY_derive(context.get(), U8(shared.bytes()), &size) != 1 || size != shared.size())
    return OpensslError("agree on a key by ECDH");
  return ConcatKdfSha256(shared.bytes(), AsBytes(other_info), algorithm.wrap_key_bytes);
}

absl::StatusOr<CipherContext> KeyWrapContext(const Secret& wrap_key, bool encrypt) {
  CipherContext context(EVP_CIPHER_CTX_new());
  if (context == nullptr) return OpensslError("AES key wrap");
  EVP_CIPHER_CTX_set_flags(context.get(), EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
  if (EVP_CipherInit_ex2(context.get(), AesWrap(wrap_key.size()), U8(wrap_key.bytes()), nullptr,
                         encrypt ? 1 : 0, nullptr) != 1)
    return OpensslError("AES key wrap");
  return context;
}

absl::StatusOr<std::string> Coordinate(EVP_PKEY* key, const char* param, const Curve& curve) {
  BIGNUM* raw = nullptr;
  const int found = EVP_PKEY_get_bn_param(key, param, &raw);
  const BigNumber number(raw);
  std::string bytes(curve.field_bytes, '\0');
  if (found != 1 || BN_bn2binpad(number.get(), U8(bytes), static_cast<int>(bytes.size())) !=
                        static_cast<int>(bytes.size()))
    return OpensslError("coordinates of an EC key");
  return EncodeBase64Url(AsBytes(bytes));
}

absl::StatusOr<WrappedCek> WrapEcdh(const Secret& cek, const Key& recipient, const Curve& curve) {
  const UniqueKey ephemeral(EVP_EC_gen(curve.group));
  if (ephemeral == nullptr) return OpensslError("generate an EC key");
  ASSIGN_OR_RETURN(const std::string x,
                   Coordinate(ephemeral.get(), OSSL_PKEY_PARAM_EC_PUB_X, curve));
  ASSIGN_OR_RETURN(const std::string y,
                   Coordinate(ephemeral.get(), OSSL_PKEY_PARAM_EC_PUB_Y, curve));
  ASSIGN_OR_RETURN(const Secret wrap_key, Agree(ephemeral.get(), recipient.get(), curve,
                                                kEcdhWritten, OtherInfo(kEcdhWritten, "", "")));
  ASSIGN_OR_RETURN(const CipherContext context, KeyWrapContext(wrap_key, /*encrypt=*/true));
  std::string wrapped(cek.size() + 8, '\0');
  int size = 0;
  if (EVP_CipherUpdate(context.get(), U8(wrapped), &size, U8(cek.bytes()),
                       static_cast<int>(cek.size())) != 1 ||
      static_cast<size_t>(size) != wrapped.size())
    return OpensslError("AES key wrap");
  const Json epk{{"kty", "EC"}, {"crv", curve.jwk_name}, {"x", x}, {"y", y}};
  return WrappedCek{Json{{"alg", kEcdhWritten.name}, {"epk", epk}}, std::move(wrapped)};
}

// The ephemeral public key of a header; null where it is not a point of `curve`.
UniqueKey EphemeralKey(const Json& header, const Curve& curve) {
  const Json* epk = FindMember(header, "epk");
  if (epk == nullptr || StringMember(*epk, "kty").value_or("") != "EC" ||
      StringMember(*epk, "crv").value_or("") != curve.jwk_name)
    return nullptr;
  std::string point = "\x04";  // uncompressed
  for (const char* name : {"x", "y"}) {
    const std::string bytes = DecodeBase64Url(StringMember(*epk, name).value_or("")).value_or("");
    if (bytes.size() != curve.field_bytes) return nullptr;
    point += bytes;
  }
  std::string group = curve.group;
  OSSL_PARAM params[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, group.data(), 0),
      OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, point.data(), point.size()),
      OSSL_PARAM_construct_end()};
  const KeyContext context(EVP_PKEY_CTX_new_from_name(nullptr, "EC", nullptr));
  EVP_PKEY* key = nullptr;
  if (context == nullptr || EVP_PKEY_fromdata_init(context.get()) != 1 ||
      EVP_PKEY_fromdata(context.get(), &key, EVP_PKEY_PUBLIC_KEY, params) != 1)
    return nullptr;
  return UniqueKey(key);
}

absl::StatusOr<std::string> PartyInfo(const Json& header, const char* name) {
  ASSIGN_OR_RETURN(const std::optional<std::string> text, OptionalString(header, name));
  if (!text) return std::string();
  if (text->size() > kMaxPartyInfo) return DoesNotFit();
  return DecodeBase64Url(*text);
}

absl::StatusOr<Secret> UnwrapEcdh(const EcdhAlgorithm& algorithm, const Json& header,
                                  ByteSpan wrapped, const Key& key, size_t cek_size) {
  const Curve* const curve = CurveOf(key);
  if (curve == nullptr || wrapped.size() != cek_size + 8) return DoesNotFit();
  const UniqueKey ephemeral = EphemeralKey(header, *curve);
  const absl::StatusOr<std::string> apu = PartyInfo(header, "apu");
  const absl::StatusOr<std::string> apv = PartyInfo(header, "apv");
  if (ephemeral == nullptr || !apu.ok() || !apv.ok()) return DoesNotFit();
  const absl::StatusOr<Secret> wrap_key =
      Agree(key.get(), ephemeral.get(), *curve, algorithm, OtherInfo(algorithm, *apu, *apv));
  if (!wrap_key.ok()) return DoesNotFit();
  ASSIGN_OR_RETURN(const CipherContext context, KeyWrapContext(*wrap_key, /*encrypt=*/false));
  Secret cek(wrapped.size());
  int size = 0;
  if (EVP_CipherUpdate(context.get(), U8(cek.bytes()), &size, U8(wrapped),
                       static_cast<int>(wrapped.size())) != 1 ||
      static_cast<size_t>(size) != cek_size)
    return DoesNotFit();
  cek.Truncate(cek_size);
  return cek;
}

}  // namespace

absl::StatusOr<WrappedCek> WrapCek(const Secret& cek, const Key& recipient) {
  if (IsRsa(recipient)) return WrapRsa(cek, recipient);
  if (const Curve* curve = CurveOf(recipient)) return WrapEcdh(cek, recipient, *curve);
  return InvalidArgument("a recipient that is neither RSA nor EC");
}

int UnwrapCost(const Json& header, ByteSpan encrypted_key, const Key& key) {
  const std::string alg = StringMember(header, "alg").value_or("");
  if (OaepHash(alg) != nullptr)
    return IsRsa(key) && HasModulusLength(encrypted_key, key) ? RsaCost(key) : 0;
  const Curve* const curve = FindEcdh(alg) != nullptr ? CurveOf(key) : nullptr;
  const Json* const epk = FindMember(header, "epk");
  if (curve == nullptr || epk == nullptr ||
      StringMember(*epk, "crv").value_or("") != curve->jwk_name)
    return 0;
  return curve->cost;
}

absl::StatusOr<Secret> UnwrapCek(const Json& header, ByteSpan encrypted_key, const Key& key,
                                 size_t cek_size) {
  const std::string alg = StringMember(header, "alg").value_or("");
  if (const char* hash = OaepHash(alg)) return UnwrapRsa(hash, encrypted_key, key, cek_size);
  if (const EcdhAlgorithm* algorithm = FindEcdh(alg))
    return UnwrapEcdh(*algorithm, header, encrypted_key, key, cek_size);
  return DoesNotFit();
}

}  // namespace kapsule::crypt
