#include "snapshotter/fetch/cache_folder.h"

#include <absl/time/clock.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <set>

#include "core/base/log.h"
#include "core/base/printable.h"
#include "snapshotter/fetch/block_list.h"

namespace kapsule::fetch {
namespace {

constexpr std::string_view kListSuffix = ".blocks", kNewSuffix = ".new";
constexpr absl::Duration kLockPause = absl::Milliseconds(20);

std::string ListName(const oci::Digest& blob) { return blob.hex() + std::string(kListSuffix); }

absl::Status Lock(int folder, const std::string& path, absl::Duration wait) {
  const absl::Time deadline = absl::Now() + wait;
  while (flock(folder, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return ErrnoStatus(errno, "lock " + path);
    if (absl::Now() >= deadline)
      return FailedPrecondition(
          "another kapsule-fetch uses the cache {}, and did not end within {} ms: end it first",
          path, absl::ToInt64Milliseconds(wait));
    absl::SleepFor(kLockPause);
  }
  return absl::OkStatus();
}

absl::Status TakeOwnership(int folder, const std::string& path, uid_t owner, gid_t group) {
  struct stat st;
  if (fstat(folder, &st) != 0) return ErrnoStatus(errno, path);
  if (st.st_uid == 0 && owner != 0 && fchown(folder, owner, group) != 0)
    return ErrnoStatus(errno, fmt::format("give {} to user {}", path, owner));
  if (st.st_uid != 0 && st.st_uid != owner)
    return FailedPrecondition("the cache {} belongs to user {}, not to {}: give it another folder",
                              path, st.st_uid, owner);
  if ((st.st_mode & 077) != 0 && fchmod(folder, 0700) != 0) return ErrnoStatus(errno, path);
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> OpenRegular(int folder, const std::string& name, int flags,
                                     unsigned mode = 0) {
  UniqueFd fd(openat(folder, name.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, mode));
  if (!fd.valid()) return ErrnoStatus(errno, "cached blob " + name);
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, "cached blob " + name);
  if (!S_ISREG(st.st_mode)) return FailedPrecondition("cached blob {} is no regular file", name);
  return fd;
}

struct CloseDir {
  void operator()(DIR* dir) const { closedir(dir); }
};

absl::StatusOr<std::vector<std::string>> NamesIn(int folder) {
  const int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return ErrnoStatus(errno, "list the cache");
  const std::unique_ptr<DIR, CloseDir> dir(fdopendir(copy));
  if (dir == nullptr) return ErrnoStatus(errno, "list the cache");
  std::vector<std::string> names;
  while (const dirent* entry = readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  return names;
}

void RemoveForeign(int folder, const std::string& name) {
  log::warn("cache: {} is not of the cache and is removed", Printable(name));
  if (unlinkat(folder, name.c_str(), 0) == 0 || unlinkat(folder, name.c_str(), AT_REMOVEDIR) == 0)
    return;
  log::warn("cache: {} stays: {}", Printable(name), strerror(errno));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CacheFolder>> CacheFolder::Open(const std::filesystem::path& path,
                                                               uid_t owner, gid_t group,
                                                               absl::Duration wait) {
  RETURN_IF_ERROR(MakeDirs(path, 0700));
  ASSIGN_OR_RETURN(UniqueFd folder, OpenFile(path, O_RDONLY | O_DIRECTORY));
  RETURN_IF_ERROR(Lock(folder.get(), path.string(), wait));
  RETURN_IF_ERROR(TakeOwnership(folder.get(), path.string(), owner, group));
  return std::unique_ptr<CacheFolder>(new CacheFolder(std::move(folder)));
}

absl::StatusOr<std::vector<CacheFolder::Entry>> CacheFolder::Scan() const {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(folder_.get()));
  const std::set<std::string> all(names.begin(), names.end());
  std::vector<Entry> entries;
  for (const std::string& name : names) {
    const bool is_list = name.ends_with(kListSuffix);
    const std::string hex = is_list ? name.substr(0, name.size() - kListSuffix.size()) : name;
    const absl::StatusOr<oci::Digest> blob = oci::Digest::Parse("sha256:" + hex);
    struct stat st;
    const bool ours = blob.ok() && (!is_list || all.contains(hex)) &&
                      fstatat(folder_.get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0 &&
                      S_ISREG(st.st_mode) && st.st_uid == geteuid();
    if (!ours) {
      RemoveForeign(folder_.get(), name);
      continue;
    }
    if (is_list) continue;
    Entry entry{*blob, static_cast<uint64_t>(st.st_blocks) * 512, absl::InfinitePast()};
    if (fstatat(folder_.get(), ListName(*blob).c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0)
      entry.used = absl::TimeFromTimespec(st.st_mtim);
    entries.push_back(entry);
  }
  return entries;
}

absl::StatusOr<UniqueFd> CacheFolder::OpenBlob(const oci::Digest& blob, int flags) const {
  return OpenRegular(folder_.get(), blob.hex(), flags);
}

absl::StatusOr<UniqueFd> CacheFolder::CreateBlob(const oci::Digest& blob, uint64_t size) const {
  RETURN_IF_ERROR(Remove(blob));
  ASSIGN_OR_RETURN(UniqueFd fd,
                   OpenRegular(folder_.get(), blob.hex(), O_RDWR | O_CREAT | O_EXCL, 0600));
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    const absl::Status status = ErrnoStatus(errno, fmt::format("a file of {} bytes", size));
    unlinkat(folder_.get(), blob.hex().c_str(), 0);
    return Annotate(status, "cached blob " + blob.hex());
  }
  return fd;
}

absl::StatusOr<std::string> CacheFolder::ReadList(const oci::Digest& blob) const {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenRegular(folder_.get(), ListName(blob), O_RDONLY));
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, "list of blocks");
  const auto size = static_cast<uint64_t>(st.st_size);
  if (size > kMaxBlockListBytes) return InvalidArgument("a list of blocks of {} bytes", size);
  std::string bytes(size, '\0');
  const FileReader reader(std::move(fd), size);
  RETURN_IF_ERROR(reader.ReadAt(0, std::as_writable_bytes(std::span(bytes))));
  return bytes;
}

absl::Status CacheFolder::WriteList(const oci::Digest& blob, ByteSpan bytes) const {
  const std::string name = ListName(blob), fresh = name + std::string(kNewSuffix);
  const absl::Status status = [&] {
    ASSIGN_OR_RETURN(const UniqueFd fd,
                     OpenRegular(folder_.get(), fresh, O_WRONLY | O_CREAT | O_TRUNC, 0600));
    RETURN_IF_ERROR(WriteAll(fd.get(), bytes));
    if (fsync(fd.get()) != 0) return ErrnoStatus(errno, "sync");
    if (renameat(folder_.get(), fresh.c_str(), folder_.get(), name.c_str()) != 0)
      return ErrnoStatus(errno, "rename");
    return Sync();
  }();
  if (!status.ok()) unlinkat(folder_.get(), fresh.c_str(), 0);
  return Annotate(status, "write the list of blocks of " + blob.hex());
}

void CacheFolder::Touch(const oci::Digest& blob) const {
  utimensat(folder_.get(), ListName(blob).c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
}

absl::Status CacheFolder::RemoveList(const oci::Digest& blob) const {
  RETURN_IF_ERROR(Unlink(ListName(blob)));
  return Sync();
}

absl::Status CacheFolder::Remove(const oci::Digest& blob) const {
  RETURN_IF_ERROR(RemoveList(blob));
  return Unlink(blob.hex());
}

uint64_t CacheFolder::FreeBytes() const {
  struct statvfs fs;
  return fstatvfs(folder_.get(), &fs) == 0 ? uint64_t{fs.f_bavail} * fs.f_frsize : 0;
}

absl::Status CacheFolder::Unlink(const std::string& name) const {
  if (unlinkat(folder_.get(), name.c_str(), 0) == 0 || errno == ENOENT) return absl::OkStatus();
  if (errno == EISDIR && unlinkat(folder_.get(), name.c_str(), AT_REMOVEDIR) == 0)
    return absl::OkStatus();
  return ErrnoStatus(errno, "remove " + name + " from the cache");
}

absl::Status CacheFolder::Sync() const {
  return fsync(folder_.get()) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "sync the cache");
}

}  // namespace kapsule::fetch
