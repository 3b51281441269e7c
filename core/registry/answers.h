// What a registry's answer means, for people.
#pragma once

#include <string>

#include "core/http/client.h"

namespace kapsule::registry {

// The Status of an answer that is not a success: "<who> answered 401:
// UNAUTHORIZED: authentication required: log in …". What the registry says is
// shortened and stripped of control characters.
//   401 Unauthenticated, 403 PermissionDenied, 404 NotFound, 413
//   ResourceExhausted, 408, 429 and 5xx Unavailable, others FailedPrecondition
absl::Status AnswerStatus(const std::string& who, const http::Response& response);

}  // namespace kapsule::registry
