#include "core/registry/answers.h"

#include "core/base/json.h"
#include "core/base/printable.h"

namespace kapsule::registry {
namespace {

constexpr size_t kMaxBodyBytes = 64 * 1024;
constexpr size_t kMaxTextBytes = 300;

std::string Plain(std::string_view text) { return PrintableAscii(text, kMaxTextBytes); }

// {"errors":[{"code":"…","message":"…"}]}, and of token services
// {"details":"…"}; empty where it is neither.
std::string Explanation(const std::string& body) {
  const absl::StatusOr<Json> json = ParseJson(body, kMaxBodyBytes);
  if (!json.ok()) return "";
  const absl::StatusOr<const Json*> errors = ArrayMember(*json, "errors");
  if (!errors.ok() || (*errors)->empty()) return Plain(StringMember(*json, "details").value_or(""));
  const Json& first = (*errors)->front();
  const std::string code = StringMember(first, "code").value_or("");
  const std::string message = StringMember(first, "message").value_or("");
  return Plain(message.empty() ? code : code + ": " + message);
}

absl::StatusCode CodeOf(int status) {
  switch (status) {
    case 401:
      return absl::StatusCode::kUnauthenticated;
    case 403:
      return absl::StatusCode::kPermissionDenied;
    case 404:
      return absl::StatusCode::kNotFound;
    case 413:
      return absl::StatusCode::kResourceExhausted;
    case 408:
    case 429:
      return absl::StatusCode::kUnavailable;
    default:
      break;
  }
  return status >= 500 ? absl::StatusCode::kUnavailable : absl::StatusCode::kFailedPrecondition;
}

}  // namespace

absl::Status AnswerStatus(const std::string& who, const http::Response& response) {
  std::string text = fmt::format("{} answered {}", who, response.status);
  if (const std::string explanation = Explanation(response.body); !explanation.empty())
    text += ": " + explanation;
  if (response.status == 401) text += ": log in with --username/--password or docker login";
  return absl::Status(CodeOf(response.status), text);
}

}  // namespace kapsule::registry
