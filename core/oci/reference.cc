#include "core/oci/reference.h"

#include <algorithm>

namespace kapsule::oci {
namespace {

constexpr char kDefaultHost[] = "docker.io";
constexpr size_t kMaxNameBytes = 255;
constexpr size_t kMaxTagBytes = 128;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLowerOrDigit(char c) { return IsDigit(c) || (c >= 'a' && c <= 'z'); }
bool IsAlphanumeric(char c) { return IsLowerOrDigit(c) || (c >= 'A' && c <= 'Z'); }

// [a-z0-9]+ joined by ".", "_", "__" or any number of "-".
bool IsPathComponent(std::string_view part) {
  if (part.empty() || !IsLowerOrDigit(part.front()) || !IsLowerOrDigit(part.back())) return false;
  for (size_t at = 0; at < part.size();) {
    if (IsLowerOrDigit(part[at])) {
      ++at;
      continue;
    }
    const size_t end =
        std::find_if(part.begin() + static_cast<ptrdiff_t>(at), part.end(), IsLowerOrDigit) -
        part.begin();
    const std::string_view separator = part.substr(at, end - at);
    const bool dashes = separator.find_first_not_of('-') == std::string_view::npos;
    if (!dashes && separator != "." && separator != "_" && separator != "__") return false;
    at = end;
  }
  return true;
}

// Calls `check` with each piece between separators; false at the first refusal.
bool EachPart(std::string_view text, char separator, bool (*check)(std::string_view)) {
  for (;;) {
    const size_t end = text.find(separator);
    if (!check(text.substr(0, end))) return false;
    if (end == std::string_view::npos) return true;
    text.remove_prefix(end + 1);
  }
}

bool IsHostLabel(std::string_view label) {
  return !label.empty() && label.front() != '-' && label.back() != '-' &&
         std::all_of(label.begin(), label.end(),
                     [](char c) { return IsAlphanumeric(c) || c == '-'; });
}

bool IsIpv6(std::string_view text) {
  return text.size() > 2 && text.front() == '[' && text.back() == ']' &&
         text.substr(1, text.size() - 2).find_first_not_of("0123456789abcdefABCDEF:") ==
             std::string_view::npos;
}

bool IsPort(std::string_view port) {
  if (port.empty() || port.size() > 5 || !std::all_of(port.begin(), port.end(), IsDigit))
    return false;
  return std::stoi(std::string(port)) <= 65535;
}

// host[:port]; IPv6 addresses stand in brackets.
bool IsHost(std::string_view host) {
  const size_t name_end = host.starts_with('[') ? host.find(']') : 0;
  if (name_end == std::string_view::npos) return false;
  const size_t colon = host.find(':', name_end);
  if (colon != std::string_view::npos && !IsPort(host.substr(colon + 1))) return false;
  const std::string_view name = host.substr(0, colon);
  return IsIpv6(name) || EachPart(name, '.', IsHostLabel);
}

bool IsTag(std::string_view tag) {
  return !tag.empty() && tag.size() <= kMaxTagBytes && tag.front() != '.' && tag.front() != '-' &&
         std::all_of(tag.begin(), tag.end(),
                     [](char c) { return IsAlphanumeric(c) || c == '_' || c == '.' || c == '-'; });
}

// The first part of a name is a host where it cannot be a path component of
// Docker Hub.
bool LooksLikeHost(std::string_view part) {
  return part == "localhost" || part.find_first_of(".:") != std::string_view::npos ||
         std::any_of(part.begin(), part.end(), [](char c) { return c >= 'A' && c <= 'Z'; });
}

absl::Status ParseName(std::string_view name, Reference* reference) {
  const size_t slash = name.find('/');
  if (slash != std::string_view::npos && LooksLikeHost(name.substr(0, slash))) {
    reference->host = name.substr(0, slash);
    name.remove_prefix(slash + 1);
  }
  if (reference->host.empty() || reference->host == "index.docker.io")
    reference->host = kDefaultHost;
  if (!IsHost(reference->host)) return InvalidArgument("its host is not host[:port]");
  if (!EachPart(name, '/', IsPathComponent))
    return InvalidArgument(
        "its path is not lower-case letters and digits, joined by '.', '_', '-' and '/'");
  reference->repository = name;
  if (reference->host == kDefaultHost && name.find('/') == std::string_view::npos)
    reference->repository = "library/" + reference->repository;
  if (reference->host.size() + 1 + reference->repository.size() > kMaxNameBytes)
    return InvalidArgument("host and path are longer than {} bytes", kMaxNameBytes);
  return absl::OkStatus();
}

absl::StatusOr<Reference> ParseParts(std::string_view text) {
  Reference reference;
  if (const size_t at = text.find('@'); at != std::string_view::npos) {
    ASSIGN_OR_RETURN(reference.digest, Digest::Parse(text.substr(at + 1)));
    text = text.substr(0, at);
  }
  // A colon before the last slash belongs to the host's port.
  const size_t slash = text.rfind('/');
  const size_t colon = text.rfind(':');
  if (colon != std::string_view::npos && (slash == std::string_view::npos || colon > slash)) {
    if (!IsTag(text.substr(colon + 1)))
      return InvalidArgument("its tag is not 1 to {} of A-Z a-z 0-9 _ . -", kMaxTagBytes);
    reference.tag = text.substr(colon + 1);
    text = text.substr(0, colon);
  } else if (!reference.digest) {
    reference.tag = "latest";
  }
  RETURN_IF_ERROR(ParseName(text, &reference));
  return reference;
}

}  // namespace

absl::StatusOr<Reference> Reference::Parse(std::string_view name) {
  if (name.size() > 512) return InvalidArgument("image name of {} bytes", name.size());
  absl::StatusOr<Reference> reference = ParseParts(name);
  if (!reference.ok()) return Annotate(reference.status(), fmt::format("image name \"{}\"", name));
  return reference;
}

std::string Reference::text() const {
  std::string text = host + "/" + repository;
  if (!tag.empty()) text += ":" + tag;
  if (digest) text += "@" + digest->text();
  return text;
}

}  // namespace kapsule::oci
