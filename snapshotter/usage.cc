#include "snapshotter/usage.h"

#include <fts.h>
#include <sys/stat.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include <absl/time/clock.h>

namespace kapsule::snapshotter {

absl::StatusOr<Usage> DiskUsage(const std::filesystem::path& tree) {
  constexpr uint64_t kBlock = 512;  // of st_blocks, on every file system
  std::string root = tree.string();
  char* const roots[] = {root.data(), nullptr};
  const std::unique_ptr<FTS, int (*)(FTS*)> walk(
      fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, nullptr), fts_close);
  if (walk == nullptr) return ErrnoStatus(errno, "walk " + root);

  Usage usage;
  std::set<std::pair<dev_t, ino_t>> linked;
  while (true) {
    errno = 0;
    const FTSENT* entry = fts_read(walk.get());
    if (entry == nullptr) break;
    if (entry->fts_info == FTS_DP) continue;  // a directory's second visit
    if (entry->fts_info == FTS_NS || entry->fts_info == FTS_DNR || entry->fts_info == FTS_ERR) {
      // A name too long for one path can only be a container's own making.
      if (entry->fts_level > FTS_ROOTLEVEL &&
          (entry->fts_errno == ENOENT || entry->fts_errno == ENAMETOOLONG))
        continue;
      return ErrnoStatus(entry->fts_errno, entry->fts_path);
    }
    const struct stat& st = *entry->fts_statp;
    if (!S_ISDIR(st.st_mode) && st.st_nlink > 1 && !linked.emplace(st.st_dev, st.st_ino).second)
      continue;
    usage.size += static_cast<uint64_t>(st.st_blocks) * kBlock;
    usage.inodes += 1;
  }
  if (errno != 0 && errno != ENAMETOOLONG) return ErrnoStatus(errno, "walk " + root);
  return usage;
}

absl::StatusOr<Usage> UsageMeter::Measure(int64_t id, const std::filesystem::path& tree) {
  constexpr int kRest = 20;
  const absl::Time start = absl::Now();
  {
    absl::MutexLock lock(&mu_);
    const auto found = measured_.find(id);
    if (found != measured_.end() && start < found->second.good_until) return found->second.usage;
  }
  ASSIGN_OR_RETURN(const Usage usage, DiskUsage(tree));
  const absl::Time end = absl::Now();
  absl::MutexLock lock(&mu_);
  measured_[id] = {usage, end + kRest * (end - start)};
  return usage;
}

void UsageMeter::Forget(int64_t id) {
  absl::MutexLock lock(&mu_);
  measured_.erase(id);
}

}  // namespace kapsule::snapshotter
