// What failed for now and what for good.
#pragma once

#include "core/base/status.h"

namespace kapsule::fetch {

// Asking again may help, without anybody doing something about it.
inline bool MayPass(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kDataLoss:  // from another mirror it may come right
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace kapsule::fetch
