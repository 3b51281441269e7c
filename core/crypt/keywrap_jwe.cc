#include "core/crypt/keywrap_jwe.h"

#include <openssl/err.h>

#include <algorithm>

#include "core/crypt/evp.h"
#include "core/crypt/jwe_key.h"

namespace kapsule::crypt {
namespace {

constexpr size_t kCekBytes = 32;
// The JWE's limit after base64 of a payload and of 32 wrapped keys.
constexpr size_t kMaxPayload = 16 * 1024;

// Fills iv, ciphertext and tag; `message.aad` is there.
absl::Status EncryptContent(const Secret& cek, ByteSpan payload, JweMessage& message) {
  message.iv.resize(kJweIvBytes);
  message.ciphertext.resize(payload.size());
  message.tag.resize(kJweTagBytes);
  RETURN_IF_ERROR(FillRandom(std::as_writable_bytes(std::span(message.iv))));
  const CipherContext context(EVP_CIPHER_CTX_new());
  int n;
  if (context == nullptr ||
      EVP_EncryptInit_ex2(context.get(), AesGcm(cek.size()), U8(cek.bytes()), U8(message.iv),
                          nullptr) != 1 ||
      EVP_EncryptUpdate(context.get(), nullptr, &n, U8(message.aad),
                        static_cast<int>(message.aad.size())) != 1 ||
      EVP_EncryptUpdate(context.get(), U8(message.ciphertext), &n, U8(payload),
                        static_cast<int>(payload.size())) != 1 ||
      EVP_EncryptFinal_ex(context.get(), nullptr, &n) != 1 ||
      EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, kJweTagBytes, U8(message.tag)) != 1)
    return OpensslError("encrypt by AES-GCM");
  return absl::OkStatus();
}

// An empty Secret where the tag does not fit.
Secret DecryptContent(const Secret& cek, const JweMessage& message) {
  const CipherContext context(EVP_CIPHER_CTX_new());
  Secret payload(message.ciphertext.size());
  int n;
  if (context == nullptr ||
      EVP_DecryptInit_ex2(context.get(), AesGcm(cek.size()), U8(cek.bytes()), U8(message.iv),
                          nullptr) != 1 ||
      EVP_DecryptUpdate(context.get(), nullptr, &n, U8(message.aad),
                        static_cast<int>(message.aad.size())) != 1 ||
      EVP_DecryptUpdate(context.get(), U8(payload.bytes()), &n, U8(message.ciphertext),
                        static_cast<int>(message.ciphertext.size())) != 1 ||
      EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_TAG, kJweTagBytes,
                          const_cast<char*>(message.tag.data())) != 1 ||
      EVP_DecryptFinal_ex(context.get(), nullptr, &n) != 1) {
    ERR_clear_error();
    return Secret();
  }
  return payload;
}

struct Attempt {
  const JweMessage* message;
  const JweRecipient* recipient;
  size_t key;
  int cost;
};

// All that may succeed, those first whose recipient names the key.
std::vector<Attempt> Attempts(std::span<const JweMessage> messages, std::span<const Key> keys) {
  std::vector<Attempt> attempts;
  for (const JweMessage& message : messages) {
    for (const JweRecipient& recipient : message.recipients) {
      for (size_t key = 0; key < keys.size(); ++key) {
        const int cost = UnwrapCost(recipient.header, AsBytes(recipient.encrypted_key), keys[key]);
        if (cost > 0) attempts.push_back({&message, &recipient, key, cost});
      }
    }
  }
  std::vector<std::string> fingerprints(keys.size());  // as they are needed
  std::stable_partition(attempts.begin(), attempts.end(), [&](const Attempt& attempt) {
    const Json* kid = FindMember(attempt.recipient->header, "kid");
    if (kid == nullptr || !kid->is_string()) return false;
    std::string& fingerprint = fingerprints[attempt.key];
    if (fingerprint.empty()) fingerprint = Fingerprint(keys[attempt.key]);
    return *kid == fingerprint;
  });
  return attempts;
}

}  // namespace

absl::StatusOr<std::string> WrapJwe(ByteSpan payload, std::span<const Key> recipients) {
  if (recipients.empty() || recipients.size() > kMaxJweRecipients)
    return InvalidArgument("{} recipients, not 1 to {}", recipients.size(), kMaxJweRecipients);
  if (payload.empty() || payload.size() > kMaxPayload)
    return InvalidArgument("{} bytes to wrap, not 1 to {}", payload.size(), kMaxPayload);
  Secret cek(kCekBytes);
  RETURN_IF_ERROR(FillRandom(cek.bytes()));
  JweMessage message;
  for (const Key& recipient : recipients) {
    ASSIGN_OR_RETURN(WrappedCek wrapped, WrapCek(cek, recipient));
    message.recipients.push_back({std::move(wrapped.header), std::move(wrapped.encrypted_key)});
  }
  // One recipient: all in the protected header. Several: only what they share.
  Json protected_header = Json::object();
  if (recipients.size() == 1) protected_header = message.recipients[0].header;
  protected_header["enc"] = "A256GCM";
  message.aad = EncodeBase64Url(AsBytes(DumpJson(protected_header)));
  RETURN_IF_ERROR(EncryptContent(cek, payload, message));
  std::string text = SerializeJwe(message);
  if (text.size() > kMaxJweBytes)
    return InvalidArgument("a JWE of {} bytes, more than {}: wrap for fewer recipients",
                           text.size(), kMaxJweBytes);
  return text;
}

absl::StatusOr<Secret> OpenJwes(std::span<const JweMessage> messages, std::span<const Key> keys,
                                size_t* opened_by) {
  int budget = kUnwrapBudget;
  for (const Attempt& attempt : Attempts(messages, keys)) {
    budget -= attempt.cost;
    if (budget < 0)
      return InvalidArgument(
          "JWE: too many wrapped keys to try with {} keys; wrap for fewer recipients, or name each "
          "key's fingerprint as \"kid\"",
          keys.size());
    const absl::StatusOr<Secret> cek =
        UnwrapCek(attempt.recipient->header, AsBytes(attempt.recipient->encrypted_key),
                  keys[attempt.key], attempt.message->cek_bytes);
    if (!cek.ok()) continue;
    Secret payload = DecryptContent(*cek, *attempt.message);
    if (payload.empty()) continue;
    if (opened_by != nullptr) *opened_by = attempt.key;
    return payload;
  }
  return NotFound("JWE: wrapped for other keys, or altered");
}

absl::StatusOr<Secret> UnwrapJwe(std::string_view jwe, std::span<const Key> keys,
                                 size_t* opened_by) {
  ASSIGN_OR_RETURN(const JweMessage message, ParseJwe(jwe));
  return OpenJwes({&message, 1}, keys, opened_by);
}

}  // namespace kapsule::crypt
