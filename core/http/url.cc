#include "core/http/url.h"

#include <curl/curl.h>
#include <strings.h>

#include <memory>

namespace kapsule::http {
namespace {

using Handle = std::unique_ptr<CURLU, decltype(&curl_url_cleanup)>;

absl::StatusOr<std::string> Part(const Handle& url, CURLUPart part, unsigned flags = 0) {
  char* text = nullptr;
  const CURLUcode code = curl_url_get(url.get(), part, &text, flags);
  if (code != CURLUE_OK) return InvalidArgument("url: {}", curl_url_strerror(code));
  std::string result(text);
  curl_free(text);
  return result;
}

absl::Status Set(const Handle& url, CURLUPart part, const std::string& text, unsigned flags) {
  if (text.size() > kMaxUrlBytes)
    return InvalidArgument("url of {} bytes, more than the limit of {}", text.size(), kMaxUrlBytes);
  for (const char c : text) {
    if (static_cast<unsigned char>(c) <= ' ' || c == 0x7f)
      return InvalidArgument("url with a space or control character");
  }
  const CURLUcode code = curl_url_set(url.get(), part, text.c_str(), flags);
  if (code != CURLUE_OK) return InvalidArgument("url: {}", curl_url_strerror(code));
  return absl::OkStatus();
}

absl::StatusOr<Handle> ParseUrl(const std::string& text) {
  Handle url(curl_url(), curl_url_cleanup);
  if (url == nullptr) return ResourceExhausted("no memory for a url");
  RETURN_IF_ERROR(Set(url, CURLUPART_URL, text, CURLU_DISALLOW_USER));
  return url;
}

absl::StatusOr<std::string> Text(const Handle& url) {
  ASSIGN_OR_RETURN(const std::string scheme, Part(url, CURLUPART_SCHEME));
  if (scheme != "http" && scheme != "https")
    return InvalidArgument("url of scheme {}, not http or https", scheme);
  return Part(url, CURLUPART_URL);
}

}  // namespace

absl::StatusOr<std::string> ResolveUrl(const std::string& base, const std::string& reference) {
  ASSIGN_OR_RETURN(const Handle url, ParseUrl(base));
  RETURN_IF_ERROR(Set(url, CURLUPART_URL, reference, CURLU_DISALLOW_USER));
  return Text(url);
}

absl::StatusOr<std::string> AddQuery(const std::string& url, const std::string& name,
                                     const std::string& value) {
  ASSIGN_OR_RETURN(const Handle handle, ParseUrl(url));
  char* escaped = curl_easy_escape(nullptr, value.data(), static_cast<int>(value.size()));
  if (escaped == nullptr) return InvalidArgument("{} cannot stand in a url", name);
  const std::string pair = name + "=" + escaped;
  curl_free(escaped);
  RETURN_IF_ERROR(Set(handle, CURLUPART_QUERY, pair, CURLU_APPENDQUERY));
  return Text(handle);
}

bool SameOrigin(const std::string& a, const std::string& b) {
  const absl::StatusOr<Handle> first = ParseUrl(a), second = ParseUrl(b);
  if (!first.ok() || !second.ok()) return false;
  for (const CURLUPart part : {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT}) {
    const absl::StatusOr<std::string> x = Part(*first, part, CURLU_DEFAULT_PORT);
    const absl::StatusOr<std::string> y = Part(*second, part, CURLU_DEFAULT_PORT);
    if (!x.ok() || !y.ok() || strcasecmp(x->c_str(), y->c_str()) != 0) return false;
  }
  return true;
}

bool IsHttps(const std::string& url) { return url.starts_with("https://"); }

std::string UrlForMessages(const std::string& url) {
  return url.substr(0, url.find_first_of("?#"));
}

}  // namespace kapsule::http
