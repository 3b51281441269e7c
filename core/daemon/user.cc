#include "core/daemon/user.h"

#include <pwd.h>

#include <cerrno>
#include <charconv>
#include <limits>
#include <optional>
#include <vector>

namespace kapsule::daemon {
namespace {

constexpr size_t kMaxRecord = 1 << 20;

// `look_up` is getpwnam_r or getpwuid_r with its first argument bound.
template <typename LookUp>
absl::StatusOr<std::optional<User>> Find(LookUp look_up) {
  std::vector<char> buffer(4096);
  while (true) {
    passwd record;
    passwd* found = nullptr;
    const int error = look_up(&record, buffer.data(), buffer.size(), &found);
    if (error == ERANGE && buffer.size() < kMaxRecord) {
      buffer.resize(buffer.size() * 2);
      continue;
    }
    if (found != nullptr) return User{found->pw_uid, found->pw_gid, found->pw_name};
    // getpwnam(3): several errors mean no more than "no such user".
    if (error == 0 || error == ENOENT || error == ESRCH || error == EBADF || error == EPERM)
      return std::nullopt;
    return ErrnoStatus(error, "read the user database");
  }
}

}  // namespace

absl::StatusOr<User> LookUpUser(const std::string& name_or_number) {
  if (name_or_number.empty()) return InvalidArgument("an empty user name");
  const char* const end = name_or_number.data() + name_or_number.size();
  uid_t uid = 0;
  const auto [stop, error] = std::from_chars(name_or_number.data(), end, uid);
  if (stop == end) {
    // (uid_t)-1 means "no change" to the kernel.
    if (error != std::errc() || uid == std::numeric_limits<uid_t>::max())
      return InvalidArgument("{} is not a user id", name_or_number);
    ASSIGN_OR_RETURN(const std::optional<User> user,
                     Find([&](auto... rest) { return getpwuid_r(uid, rest...); }));
    return user.value_or(User{uid, uid, ""});
  }
  ASSIGN_OR_RETURN(const std::optional<User> user,
                   Find([&](auto... rest) { return getpwnam_r(name_or_number.c_str(), rest...); }));
  if (!user) return NotFound("no user \"{}\"", name_or_number);
  return *user;
}

}  // namespace kapsule::daemon
