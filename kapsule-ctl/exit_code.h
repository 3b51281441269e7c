// Exit codes, so that scripts can tell what went wrong.
#pragma once

#include "core/base/status.h"

namespace kapsule::ctl {

enum ExitCode {
  kExitOk = 0,
  kExitFailure = 1,
  kExitUsage = 2,
  kExitAuthentication = 3,
  kExitNotFound = 4,
  kExitIntegrity = 5,
  kExitNetwork = 6,
  kExitCancelled = 130,
};

inline constexpr char kExitCodesHelp[] =
    "Exit codes:\n"
    "  0 ok              3 authentication or permission   6 network\n"
    "  1 other failure   4 not found                      130 cancelled by a signal\n"
    "  2 usage           5 integrity\n";

inline ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitAuthentication;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kDataLoss:
      return kExitIntegrity;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitNetwork;
    case absl::StatusCode::kCancelled:
      return kExitCancelled;
    default:
      return kExitFailure;
  }
}

}  // namespace kapsule::ctl
