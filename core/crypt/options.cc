#include "core/crypt/options.h"

#include <openssl/evp.h>

#include "core/base/json.h"
#include "core/crypt/evp.h"
#include "core/crypt/secret_json.h"

namespace kapsule::crypt {
namespace {

constexpr size_t kKeyBytes = 32;
constexpr size_t kNonceBytes = 16;
constexpr size_t kMaxPublicOptions = 16 * 1024;
constexpr std::string_view kCipherName = "AES_256_CTR_HMAC_SHA256";

// Text written into a Secret, which is large enough.
class Writer {
 public:
  explicit Writer(size_t limit) : out_(limit) {}
  void Text(std::string_view text) {
    std::memcpy(out_.bytes().data() + size_, text.data(), text.size());
    size_ += text.size();
  }
  void Base64(const Secret& secret) {
    // Writes a NUL behind the text, which the next piece overwrites.
    size_ += static_cast<size_t>(EVP_EncodeBlock(
        U8(out_.bytes().subspan(size_)), U8(secret.bytes()), static_cast<int>(secret.size())));
  }
  Secret Finish() {
    out_.Truncate(size_);
    return std::move(out_);
  }

 private:
  Secret out_;
  size_t size_ = 0;
};

absl::StatusOr<Secret> SecretMember(const std::vector<JsonMember>& members, std::string_view name,
                                    size_t size) {
  const std::optional<std::string_view> value = FindValue(members, name);
  if (!value) return InvalidArgument("\"{}\" is missing", name);
  const absl::StatusOr<std::string_view> text = PlainString(*value);
  if (!text.ok()) return Annotate(text.status(), fmt::format("\"{}\"", name));
  absl::StatusOr<Secret> secret = DecodeBase64ToSecret(*text, /*url=*/false);
  // The decoder's own message could quote the text.
  if (!secret.ok()) return InvalidArgument("\"{}\" is not base64", name);
  if (secret->size() != size)
    return InvalidArgument("\"{}\" has {} bytes, not {}", name, secret->size(), size);
  return secret;
}

absl::StatusOr<std::string> DigestMember(const std::vector<JsonMember>& members) {
  const std::optional<std::string_view> value = FindValue(members, "digest");
  if (!value) return std::string();
  ASSIGN_OR_RETURN(const Json text, ParseJson(*value, 1024));
  if (!text.is_string()) return InvalidArgument("\"digest\" is not a string");
  return text.get<std::string>();
}

// A member without a version is someone else's.
absl::StatusOr<std::optional<oci::IndexRef>> IndexMember(const std::vector<JsonMember>& members) {
  const std::optional<std::string_view> value = FindValue(members, "kapsule");
  if (!value) return std::nullopt;
  const absl::StatusOr<std::vector<JsonMember>> index = ScanJsonObject(*value);
  if (!index.ok() || !FindValue(*index, "version")) return std::nullopt;
  return oci::IndexRef::FromJson(*value);
}

absl::StatusOr<PrivateOptions> ParsePrivate(std::string_view json) {
  ASSIGN_OR_RETURN(const std::vector<JsonMember> members, ScanJsonObject(json));
  ASSIGN_OR_RETURN(const std::vector<JsonMember> cipher_options,
                   ScanJsonObject(FindValue(members, "cipheroptions").value_or("{}")));
  PrivateOptions options;
  ASSIGN_OR_RETURN(options.key.key, SecretMember(members, "symkey", kKeyBytes));
  ASSIGN_OR_RETURN(options.key.nonce, SecretMember(cipher_options, "nonce", kNonceBytes));
  ASSIGN_OR_RETURN(options.digest, DigestMember(members));
  ASSIGN_OR_RETURN(options.index, IndexMember(members));
  return options;
}

absl::StatusOr<PublicOptions> ParsePublic(std::string_view json) {
  ASSIGN_OR_RETURN(const Json object, ParseJson(json, kMaxPublicOptions));
  ASSIGN_OR_RETURN(const std::string cipher, StringMember(object, "cipher"));
  if (cipher != kCipherName) return Unimplemented("a cipher other than {}", kCipherName);
  ASSIGN_OR_RETURN(const std::string encoded, StringMember(object, "hmac"));
  ASSIGN_OR_RETURN(const std::string hmac, DecodeBase64(encoded));
  PublicOptions options;
  if (hmac.size() != options.hmac.size())
    return InvalidArgument("\"hmac\" has {} bytes, not {}", hmac.size(), options.hmac.size());
  std::memcpy(options.hmac.data(), hmac.data(), hmac.size());
  if (const Json* cipher_options = FindMember(object, "cipheroptions")) {
    if (!cipher_options->is_object()) return InvalidArgument("\"cipheroptions\" is not an object");
    if (cipher_options->contains("nonce"))
      return InvalidArgument("a nonce stands in the public options, where anyone could change it");
  }
  return options;
}

}  // namespace

Secret PrivateOptions::Serialize() const {
  const std::string quoted_digest = DumpJson(Json(digest));
  const std::string index_json = index ? index->ToJson() : "";
  Writer out(128 + 2 * (key.key.size() + key.nonce.size()) + quoted_digest.size() +
             index_json.size());
  out.Text("{\"symkey\":\"");
  out.Base64(key.key);
  out.Text("\",\"digest\":");
  out.Text(quoted_digest);
  out.Text(",\"cipheroptions\":{\"nonce\":\"");
  out.Base64(key.nonce);
  out.Text("\"}");
  if (index) {
    out.Text(",\"kapsule\":");
    out.Text(index_json);
  }
  out.Text("}");
  return out.Finish();
}

absl::StatusOr<PrivateOptions> PrivateOptions::Parse(std::string_view json) {
  absl::StatusOr<PrivateOptions> options = ParsePrivate(json);
  if (!options.ok()) return Annotate(options.status(), "private options");
  return options;
}

std::string PublicOptions::Serialize() const {
  return DumpJson(Json{
      {"cipher", kCipherName}, {"hmac", EncodeBase64(hmac)}, {"cipheroptions", Json::object()}});
}

absl::StatusOr<PublicOptions> PublicOptions::Parse(std::string_view json) {
  absl::StatusOr<PublicOptions> options = ParsePublic(json);
  if (!options.ok()) return Annotate(options.status(), "public options");
  return options;
}

}  // namespace kapsule::crypt
