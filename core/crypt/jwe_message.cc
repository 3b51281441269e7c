#include "core/crypt/jwe_message.h"

#include <algorithm>

#include "core/base/bytes.h"

namespace kapsule::crypt {
namespace {

// Far more than 32 recipients need. The parser's time grows with the square of
// an object's members.
constexpr std::ptrdiff_t kMaxMembers = 1024;

absl::StatusOr<Json> ParseSmallJson(std::string_view text) {
  // Each member has a colon, so there are at most as many.
  if (std::count(text.begin(), text.end(), ':') > kMaxMembers)
    return InvalidArgument("more than {} members", kMaxMembers);
  return ParseJson(text, kMaxJweBytes);
}

absl::StatusOr<std::string> Base64UrlMember(const Json& object, std::string_view name) {
  ASSIGN_OR_RETURN(const std::string text, StringMember(object, name));
  absl::StatusOr<std::string> bytes = DecodeBase64Url(text);
  if (!bytes.ok()) return InvalidArgument("\"{}\" is not base64url", name);
  return bytes;
}

// Adds the members of `part` to `header`.
absl::Status MergeHeader(const Json* part, Json& header) {
  if (part == nullptr) return absl::OkStatus();
  if (!part->is_object()) return InvalidArgument("a header is not an object");
  for (const auto& member : part->items()) {
    if (header.contains(member.key()))
      return InvalidArgument("header member \"{}\" stands in two places", member.key());
    // "zip" opens the door to decompression bombs, and there is no extension
    // that we know.
    if (member.key() == "zip" || member.key() == "crit")
      return InvalidArgument("header member \"{}\" is not accepted", member.key());
    header[member.key()] = member.value();
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> ParseProtected(const std::string& encoded) {
  if (encoded.empty()) return Json::object();
  const absl::StatusOr<std::string> text = DecodeBase64Url(encoded);
  if (!text.ok()) return InvalidArgument("\"protected\" is not base64url");
  Json header = Json::object();
  ASSIGN_OR_RETURN(const Json parsed, ParseSmallJson(*text));
  RETURN_IF_ERROR(MergeHeader(&parsed, header));
  return header;
}

// `object` holds "header" and "encrypted_key".
absl::StatusOr<JweRecipient> ParseRecipient(const Json& object, const Json& common) {
  JweRecipient recipient{common, {}};
  RETURN_IF_ERROR(MergeHeader(FindMember(object, "header"), recipient.header));
  ASSIGN_OR_RETURN(recipient.encrypted_key, Base64UrlMember(object, "encrypted_key"));
  return recipient;
}

absl::StatusOr<JweMessage> ParseObject(const Json& object) {
  JweMessage message;
  ASSIGN_OR_RETURN(const std::optional<std::string> encoded, OptionalString(object, "protected"));
  message.aad = encoded.value_or("");
  ASSIGN_OR_RETURN(Json common, ParseProtected(message.aad));
  RETURN_IF_ERROR(MergeHeader(FindMember(object, "unprotected"), common));
  ASSIGN_OR_RETURN(const std::optional<std::string> aad, OptionalString(object, "aad"));
  if (aad) message.aad += "." + *aad;
  ASSIGN_OR_RETURN(message.iv, Base64UrlMember(object, "iv"));
  ASSIGN_OR_RETURN(message.ciphertext, Base64UrlMember(object, "ciphertext"));
  ASSIGN_OR_RETURN(message.tag, Base64UrlMember(object, "tag"));
  if (!object.contains("recipients")) {
    ASSIGN_OR_RETURN(JweRecipient recipient, ParseRecipient(object, common));
    message.recipients.push_back(std::move(recipient));
    return message;
  }
  // go-jose repeats the first recipient's key outside of the list.
  if (object.contains("header"))
    return InvalidArgument("headers of the flattened and of the general form together");
  ASSIGN_OR_RETURN(const Json* recipients, ArrayMember(object, "recipients"));
  if (recipients->empty() || recipients->size() > kMaxJweRecipients)
    return InvalidArgument("{} recipients, not 1 to {}", recipients->size(), kMaxJweRecipients);
  for (const Json& entry : *recipients) {
    ASSIGN_OR_RETURN(JweRecipient recipient, ParseRecipient(entry, common));
    message.recipients.push_back(std::move(recipient));
  }
  return message;
}

// The compact form as the flattened one, of which it is a shorthand.
absl::StatusOr<Json> ExpandCompact(std::string_view text) {
  constexpr const char* kParts[] = {"protected", "encrypted_key", "iv", "ciphertext", "tag"};
  if (std::count(text.begin(), text.end(), '.') != 4)
    return InvalidArgument("neither a JSON object nor five parts between dots");
  Json object = Json::object();
  for (const char* part : kParts) {
    const size_t dot = std::min(text.find('.'), text.size());
    object[part] = std::string(text.substr(0, dot));
    text.remove_prefix(std::min(dot + 1, text.size()));
  }
  return object;
}

// 0 where the content cipher is none that we read.
size_t CekBytesOf(const std::string& enc) {
  return enc == "A256GCM" ? 32 : enc == "A192GCM" ? 24 : enc == "A128GCM" ? 16 : 0;
}

// Sets cek_bytes.
absl::Status CheckContent(JweMessage& message) {
  if (message.iv.size() != kJweIvBytes || message.tag.size() != kJweTagBytes ||
      message.ciphertext.empty())
    return InvalidArgument("iv, tag or ciphertext of a wrong length");
  for (const JweRecipient& recipient : message.recipients) {
    ASSIGN_OR_RETURN(const std::string enc, StringMember(recipient.header, "enc"));
    RETURN_IF_ERROR(StringMember(recipient.header, "alg").status());
    const size_t cek_bytes = CekBytesOf(enc);
    if (cek_bytes == 0) return InvalidArgument("a content cipher other than AES-GCM");
    if (message.cek_bytes != 0 && message.cek_bytes != cek_bytes)
      return InvalidArgument("recipients name different content ciphers");
    message.cek_bytes = cek_bytes;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JweMessage> ParseJwe(std::string_view text) {
  if (text.size() > kMaxJweBytes)
    return InvalidArgument("JWE: {} bytes, more than {}", text.size(), kMaxJweBytes);
  const size_t start = text.find_first_not_of(" \t\r\n");
  const bool is_json = start != std::string_view::npos && text[start] == '{';
  const absl::StatusOr<Json> object = is_json ? ParseSmallJson(text) : ExpandCompact(text);
  if (!object.ok()) return Annotate(object.status(), "JWE");
  absl::StatusOr<JweMessage> message = ParseObject(*object);
  if (!message.ok()) return Annotate(message.status(), "JWE");
  if (const absl::Status content = CheckContent(*message); !content.ok())
    return Annotate(content, "JWE");
  return message;
}

std::string SerializeJwe(const JweMessage& message) {
  const auto encode = [](const std::string& bytes) { return EncodeBase64Url(AsBytes(bytes)); };
  Json object{{"protected", message.aad}};
  if (message.recipients.size() == 1) {
    object["encrypted_key"] = encode(message.recipients[0].encrypted_key);
  } else {
    for (const JweRecipient& recipient : message.recipients)
      object["recipients"].push_back(
          Json{{"header", recipient.header}, {"encrypted_key", encode(recipient.encrypted_key)}});
  }
  object["iv"] = encode(message.iv);
  object["ciphertext"] = encode(message.ciphertext);
  object["tag"] = encode(message.tag);
  return DumpJson(object);
}

}  // namespace kapsule::crypt
