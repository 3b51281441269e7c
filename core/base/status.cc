#include "core/base/status.h"

#include <cerrno>
#include <cstring>

namespace kapsule {

absl::Status Annotate(const absl::Status& status, const std::string& context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), context + ": " + Message(status));
}

std::string Message(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

std::string Describe(const absl::Status& status) {
  std::string words = absl::StatusCodeToString(status.code());
  for (char& c : words) c = c == '_' ? ' ' : static_cast<char>(std::tolower(c));
  return status.message().empty() ? words : words + ": " + Message(status);
}

namespace {

absl::StatusCode CodeOfErrno(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::StatusCode::kNotFound;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    case EEXIST:
      return absl::StatusCode::kAlreadyExists;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      return absl::StatusCode::kResourceExhausted;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case EAGAIN:
      return absl::StatusCode::kUnavailable;
    case ETIMEDOUT:
      return absl::StatusCode::kDeadlineExceeded;
    case EIO:
      return absl::StatusCode::kDataLoss;
    case EINVAL:
    case ENAMETOOLONG:
    case ELOOP:
    case EISDIR:
      return absl::StatusCode::kInvalidArgument;
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

absl::Status ErrnoStatus(int error, const std::string& what) {
  char buffer[128];
  const char* text = strerror_r(error, buffer, sizeof(buffer));  // GNU: never null
  return absl::Status(CodeOfErrno(error), what + ": " + text);
}

}  // namespace kapsule
