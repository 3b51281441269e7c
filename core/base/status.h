// Errors: absl::Status with the journey in the message (no capital, no period,
// no secret). The lowest layer says what failed; each caller adds once what it
// was doing.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/format.h>

#include <string>
#include <utility>

namespace kapsule {

// `status` with "context: " before its message; OK stays OK.
absl::Status Annotate(const absl::Status& status, const std::string& context);

// The message as a std string (absl's string_view is not std's on Debian 12).
std::string Message(const absl::Status& status);

// "not found: no such layer": the code in words and the message.
std::string Describe(const absl::Status& status);

// The Status of an errno value: ENOENT NotFound, EACCES and EPERM
// PermissionDenied, EEXIST AlreadyExists, ENOSPC, EDQUOT and ENOMEM
// ResourceExhausted, ECONNREFUSED and EAGAIN Unavailable, ETIMEDOUT
// DeadlineExceeded, EIO DataLoss, others Internal. The message ends with
// strerror's text.
absl::Status ErrnoStatus(int error, const std::string& what);

// fmt-formatted errors, one for each code that is in use.
#define KAPSULE_STATUS_FACTORY(Name)                                            \
  template <typename... Args>                                                   \
  absl::Status Name(fmt::format_string<Args...> format, Args&&... args) {       \
    return absl::Name##Error(fmt::format(format, std::forward<Args>(args)...)); \
  }
KAPSULE_STATUS_FACTORY(AlreadyExists)
KAPSULE_STATUS_FACTORY(Cancelled)
KAPSULE_STATUS_FACTORY(DataLoss)
KAPSULE_STATUS_FACTORY(DeadlineExceeded)
KAPSULE_STATUS_FACTORY(FailedPrecondition)
KAPSULE_STATUS_FACTORY(Internal)
KAPSULE_STATUS_FACTORY(InvalidArgument)
KAPSULE_STATUS_FACTORY(NotFound)
KAPSULE_STATUS_FACTORY(PermissionDenied)
KAPSULE_STATUS_FACTORY(ResourceExhausted)
KAPSULE_STATUS_FACTORY(Unauthenticated)
KAPSULE_STATUS_FACTORY(Unavailable)
KAPSULE_STATUS_FACTORY(Unimplemented)
#undef KAPSULE_STATUS_FACTORY

}  // namespace kapsule

#define KAPSULE_CONCAT_(a, b) a##b
#define KAPSULE_CONCAT(a, b) KAPSULE_CONCAT_(a, b)

#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_(KAPSULE_CONCAT(status_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_(result, lhs, expr) \
  auto result = (expr);                      \
  if (!result.ok()) return result.status();  \
  lhs = std::move(result).value()
