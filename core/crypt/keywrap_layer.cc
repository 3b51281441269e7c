#include <algorithm>
#include <cctype>

#include "core/crypt/keywrap_jwe.h"

namespace kapsule::crypt {
namespace {

constexpr std::string_view kKeysPrefix = "org.opencontainers.image.enc.keys.";
constexpr size_t kMaxItems = 32;  // wrapped keys in one annotation
constexpr size_t kMaxSchemesNamed = 8;
constexpr size_t kMaxSchemeName = 64;
constexpr size_t kMaxPublicOptions = 16 * 1024;

absl::Status CheckPublicOptions(const oci::Annotations& annotations) {
  const auto found = annotations.find(oci::kPublicOptionsAnnotation);
  if (found == annotations.end())
    return InvalidArgument("annotation {} is missing", oci::kPublicOptionsAnnotation);
  if (found->second.size() > kMaxPublicOptions)
    return InvalidArgument("annotation {} is longer than {} bytes", oci::kPublicOptionsAnnotation,
                           kMaxPublicOptions);
  const absl::StatusOr<std::string> json = DecodeBase64(found->second);
  if (!json.ok())
    return InvalidArgument("annotation {} is not base64", oci::kPublicOptionsAnnotation);
  return PublicOptions::Parse(*json).status();
}

// The comma-separated JWEs of an annotation. As in ocicrypt, an item that is not
// base64 spoils all of it; one that is no JWE is only passed over.
absl::StatusOr<std::vector<std::string>> SplitItems(std::string_view list) {
  std::vector<std::string> items;
  for (bool more = true; more;) {
    const size_t comma = list.find(',');
    const std::string_view item = list.substr(0, comma);
    more = comma != std::string_view::npos;
    if (more) list.remove_prefix(comma + 1);
    if (items.size() == kMaxItems)
      return InvalidArgument("annotation {} has more than {} items", oci::kJweAnnotation,
                             kMaxItems);
    if (item.size() > kMaxJweBytes / 3 * 4 + 4)
      return InvalidArgument("item {} of annotation {} is longer than a JWE may be", items.size(),
                             oci::kJweAnnotation);
    absl::StatusOr<std::string> jwe = DecodeBase64(item);
    if (!jwe.ok())
      return InvalidArgument("item {} of annotation {} is not base64", items.size(),
                             oci::kJweAnnotation);
    items.push_back(*std::move(jwe));
  }
  return items;
}

// Those items that are JWEs; InvalidArgument where none is.
absl::StatusOr<std::vector<JweMessage>> ParseItems(std::string_view list) {
  ASSIGN_OR_RETURN(const std::vector<std::string> items, SplitItems(list));
  std::vector<JweMessage> messages;
  absl::Status error;
  size_t recipients = 0;
  for (const std::string& item : items) {
    absl::StatusOr<JweMessage> message = ParseJwe(item);
    if (!message.ok()) {
      error.Update(message.status());
      continue;
    }
    recipients += message->recipients.size();
    if (recipients > kMaxJweRecipients)
      return InvalidArgument("annotation {} has more than {} recipients", oci::kJweAnnotation,
                             kMaxJweRecipients);
    messages.push_back(*std::move(message));
  }
  if (messages.empty()) return error;
  return messages;
}

}  // namespace

std::string OfferedSchemes(const oci::Annotations& annotations) {
  std::string schemes;
  size_t count = 0;
  for (auto it = annotations.lower_bound(std::string(kKeysPrefix));
       it != annotations.end() && it->first.compare(0, kKeysPrefix.size(), kKeysPrefix) == 0;
       ++it) {
    if (++count > kMaxSchemesNamed) return schemes + ",…";
    std::string name = it->first.substr(kKeysPrefix.size(), kMaxSchemeName);
    // The name comes from an image and goes to logs.
    std::replace_if(
        name.begin(), name.end(),
        [](char c) { return !std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-'; },
        '_');
    schemes += (schemes.empty() ? "" : ",") + name;
  }
  return schemes.empty() ? "none" : schemes;
}

absl::StatusOr<oci::Annotations> WrapLayer(const PrivateOptions& options,
                                           const PublicOptions& public_options,
                                           std::span<const Key> recipients) {
  const Secret payload = options.Serialize();
  ASSIGN_OR_RETURN(const std::string jwe, WrapJwe(payload.bytes(), recipients));
  return oci::Annotations{
      {oci::kPublicOptionsAnnotation, EncodeBase64(AsBytes(public_options.Serialize()))},
      {oci::kJweAnnotation, EncodeBase64(AsBytes(jwe))}};
}

absl::StatusOr<PrivateOptions> UnwrapLayer(const oci::Annotations& annotations,
                                           std::span<const Key> keys, size_t* opened_by) {
  RETURN_IF_ERROR(CheckPublicOptions(annotations));
  const auto list = annotations.find(oci::kJweAnnotation);
  if (list == annotations.end())
    return NotFound("the layer offers no jwe key; it offers: {}", OfferedSchemes(annotations));
  ASSIGN_OR_RETURN(const std::vector<JweMessage> messages, ParseItems(list->second));
  const absl::StatusOr<Secret> payload = OpenJwes(messages, keys, opened_by);
  if (absl::IsNotFound(payload.status()))
    return NotFound("no wrapped key of the layer is for a key that we have; it offers: {}",
                    OfferedSchemes(annotations));
  if (!payload.ok()) return payload.status();
  return PrivateOptions::Parse(payload->text());
}

}  // namespace kapsule::crypt
