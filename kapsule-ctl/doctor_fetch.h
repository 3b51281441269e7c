// Judging what kapsule-fetch needs; apart from the node, for tests.
#pragma once

#include <cstdint>
#include <filesystem>

#include "core/daemon/user.h"
#include "kapsule-ctl/doctor.h"

namespace kapsule::ctl {

// Whether `user` can read all that is in `folder`; a missing one is fine. As root.
Finding JudgeReadable(const std::filesystem::path& folder, const daemon::User& user);

struct CacheUse {
  uint64_t used = 0;   // bytes on disk of what is cached
  uint64_t limit = 0;  // what may be
  uint64_t free = 0;   // of the file system, for root
};
Finding JudgeCache(const std::filesystem::path& folder, const CacheUse& use);

}  // namespace kapsule::ctl
