// Users of the system, by name or number.
#pragma once

#include <sys/types.h>

#include <string>

#include "core/base/status.h"

namespace kapsule::daemon {

struct User {
  uid_t uid;
  gid_t gid;         // primary group; of a number without an account, the same number
  std::string name;  // empty where there is no account
};

// "kapsule-fuse" or "107". A number needs no account. Reads the system's user
// database, so not for a confined process.
//   NotFound         no account of that name
//   InvalidArgument  empty, or a number that is no uid
absl::StatusOr<User> LookUpUser(const std::string& name_or_number);

}  // namespace kapsule::daemon
