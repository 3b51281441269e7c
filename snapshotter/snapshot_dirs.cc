#include "snapshotter/snapshot_dirs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <map>

#include "core/base/file.h"
#include "core/base/log.h"

namespace kapsule::snapshotter {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kNew = "new-";
constexpr std::string_view kRemoved = "rm-";

absl::Status SyncDir(const fs::path& path) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenFile(path, O_RDONLY | O_DIRECTORY));
  if (fsync(fd.get()) != 0) return ErrnoStatus(errno, "sync " + path.string());
  return absl::OkStatus();
}

// chmod as well, since the umask is not ours to know.
absl::Status MakeDir(const fs::path& path, mode_t mode) {
  if (mkdir(path.c_str(), mode) != 0 || chmod(path.c_str(), mode) != 0)
    return ErrnoStatus(errno, "make " + path.string());
  return absl::OkStatus();
}

bool IsNumber(const std::string& name) {
  return !name.empty() && name.find_first_not_of("0123456789") == std::string::npos;
}

absl::StatusOr<std::vector<std::string>> NamesIn(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator i(folder, error), end; !error && i != end; i.increment(error))
    names.push_back(i->path().filename().string());
  if (error) return ErrnoStatus(error.value(), "list " + folder.string());
  return names;
}

}  // namespace

SnapshotDirs::Staged::~Staged() {
  if (!path_.empty()) RemoveTree(path_).IgnoreError();  // else the next Sweep() finds it
}

SnapshotDirs::SnapshotDirs(fs::path folder)
    : folder_(std::move(folder)), deleter_([this] { DeleteInBackground(); }) {}

absl::StatusOr<std::unique_ptr<SnapshotDirs>> SnapshotDirs::Open(const fs::path& root) {
  RETURN_IF_ERROR(MakeDirs(root / "l", 0700));
  RETURN_IF_ERROR(MakeDirs(root / "empty", 0755));
  return std::unique_ptr<SnapshotDirs>(new SnapshotDirs(root / "l"));
}

SnapshotDirs::~SnapshotDirs() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    woken_.Signal();
  }
  deleter_.join();
}

std::optional<int64_t> SnapshotDirs::IdOf(std::string_view path) const {
  const std::string before = (folder_ / "").string();
  if (!path.starts_with(before)) return std::nullopt;
  int64_t id = 0, below = 0;
  const char* const end = path.data() + path.size();
  const auto first = std::from_chars(path.data() + before.size(), end, id);
  if (first.ec != std::errc()) return std::nullopt;
  if (path == Fs(id).string()) return id;
  constexpr std::string_view kLink = "/all/";
  const std::string_view rest(first.ptr, static_cast<size_t>(end - first.ptr));
  if (!rest.starts_with(kLink) ||
      std::from_chars(rest.data() + kLink.size(), end, below).ec != std::errc())
    return std::nullopt;
  return path == LinkedFs(id, below).string() ? std::optional(below) : std::nullopt;
}

absl::StatusOr<SnapshotDirs::Staged> SnapshotDirs::Stage(bool work, uid_t uid, gid_t gid,
                                                         bool link) const {
  std::string name = (folder_ / kNew).string() + "XXXXXX";
  if (mkdtemp(name.data()) == nullptr) return ErrnoStatus(errno, "make " + name);
  Staged staged{fs::path(name)};
  const fs::path fs = staged.path_ / "fs";
  RETURN_IF_ERROR(MakeDir(fs, 0755));
  if (chown(fs.c_str(), uid, gid) != 0) return ErrnoStatus(errno, "chown " + fs.string());
  if (work) RETURN_IF_ERROR(MakeDir(staged.path_ / "work", 0711));
  if (link && symlink(folder_.c_str(), (staged.path_ / "all").c_str()) != 0)
    return ErrnoStatus(errno, "link " + folder_.string());
  return staged;
}

absl::Status SnapshotDirs::Place(Staged& staged, int64_t id) const {
  const fs::path target = Of(id);
  int failed = rename(staged.path_.c_str(), target.c_str());
  if (failed != 0 && (errno == ENOTEMPTY || errno == EEXIST)) {
    // A transaction that failed after this left a directory, and its id free.
    DiscardPath(target);
    failed = rename(staged.path_.c_str(), target.c_str());
  }
  if (failed != 0) return ErrnoStatus(errno, "rename to " + target.string());
  staged.path_.clear();
  return absl::OkStatus();
}

absl::Status SnapshotDirs::Sync() const { return SyncDir(folder_); }

void SnapshotDirs::Discard(int64_t id) {
  DiscardPath(Of(id));
  WakeDeleter();
}

void SnapshotDirs::DiscardPath(const fs::path& path) const {
  static std::atomic<uint64_t> count = 0;
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  const fs::path removed =
      folder_ / fmt::format("{}{}-{}-{}", kRemoved, path.filename().string(), now, ++count);
  if (rename(path.c_str(), removed.c_str()) != 0 && errno != ENOENT)
    log::warn("{}", Describe(ErrnoStatus(errno, "discard " + path.string())));
}

absl::StatusOr<std::set<int64_t>> SnapshotDirs::Sweep(const std::set<int64_t>& ids) {
  std::map<std::string, int64_t> missing;
  for (const int64_t id : ids) missing.emplace(std::to_string(id), id);
  ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(folder_));
  for (const std::string& name : names)
    if (missing.erase(name) == 0 && (name.starts_with(kNew) || IsNumber(name)))
      DiscardPath(folder_ / name);
  WakeDeleter();
  std::set<int64_t> left;
  for (const auto& [name, id] : missing) left.insert(id);
  return left;
}

void SnapshotDirs::DeleteDiscarded() {
  absl::MutexLock lock(&deleting_);
  absl::StatusOr<std::vector<std::string>> names = NamesIn(folder_);
  if (!names.ok()) return log::warn("{}", Describe(names.status()));
  for (const std::string& name : *names) {
    if (!name.starts_with(kRemoved)) continue;
    const absl::Status removed = RemoveTree(folder_ / name);
    if (!removed.ok()) log::warn("{}", Describe(removed));
  }
}

void SnapshotDirs::WakeDeleter() {
  absl::MutexLock lock(&mu_);
  wanted_ = true;
  woken_.Signal();
}

void SnapshotDirs::DeleteInBackground() {
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      while (!wanted_ && !stopping_) woken_.Wait(&mu_);
      if (stopping_) return;
      wanted_ = false;
    }
    DeleteDiscarded();
  }
}

}  // namespace kapsule::snapshotter
