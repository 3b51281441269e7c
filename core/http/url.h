// URLs of http and https. Others are refused, and so are URLs with a user or
// password in them.
#pragma once

#include <string>

#include "core/base/status.h"

namespace kapsule::http {

inline constexpr size_t kMaxUrlBytes = 16 * 1024;

// `reference` (a Location header) as an absolute URL.
absl::StatusOr<std::string> ResolveUrl(const std::string& base, const std::string& reference);

// `url` with name=value (escaped here) added to its query.
absl::StatusOr<std::string> AddQuery(const std::string& url, const std::string& name,
                                     const std::string& value);

// Scheme, host and port are the same. False where one of them is no URL.
bool SameOrigin(const std::string& a, const std::string& b);

bool IsHttps(const std::string& url);

// Without query and fragment, which may hold a signature or a token.
std::string UrlForMessages(const std::string& url);

}  // namespace kapsule::http
