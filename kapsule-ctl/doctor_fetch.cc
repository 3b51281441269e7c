#include "kapsule-ctl/doctor_fetch.h"

#include <fcntl.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <fstream>
#include <system_error>
#include <thread>

#include "core/base/file.h"

namespace kapsule::ctl {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxEntries = 10'000, kMaxPidText = 32;
constexpr uint64_t kLittle = 256 << 20;

// The calling thread then reads files as that user does; it must end afterwards.
bool BecomeReader(const daemon::User& user) {
  if (syscall(SYS_setgroups, 0, nullptr) != 0) return false;
  setfsgid(user.gid);
  setfsuid(user.uid);  // takes CAP_DAC_OVERRIDE with it
  return setfsuid(static_cast<uid_t>(-1)) == static_cast<int>(user.uid);
}

// The first thing that cannot be read.
absl::Status ReadAll(const fs::path& folder) {
  std::error_code error;
  size_t entries = 0;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    if (++entries > kMaxEntries) return absl::OkStatus();
    if (!it->is_regular_file(error) || error) continue;
    RETURN_IF_ERROR(OpenFile(it->path(), O_RDONLY | O_NONBLOCK).status());
  }
  if (!error) return absl::OkStatus();
  return ErrnoStatus(error.value(), "a folder in " + folder.string());
}

uint64_t BytesIn(const fs::path& folder) {
  uint64_t bytes = 0;
  size_t entries = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    struct stat st;
    if (++entries > kMaxEntries) break;
    if (lstat(it->path().c_str(), &st) == 0 && S_ISREG(st.st_mode))
      bytes += static_cast<uint64_t>(st.st_blocks) * 512;
  }
  return bytes;
}

// -1 where the file is missing, or names no process that runs kapsule-fetch.
pid_t FetchPid(const NodeSettings& settings) {
  const absl::StatusOr<std::string> text =
      ReadFile(fs::path(settings.root) / "fetch.pid", kMaxPidText);
  pid_t pid = -1;
  if (!text.ok()) return -1;
  std::from_chars(text->data(), text->data() + text->size(), pid);
  std::ifstream file(fmt::format("/proc/{}/comm", pid));
  std::string name;
  std::getline(file, name);
  return name == "kapsule-fetch" ? pid : -1;
}

Finding Fetch(const NodeSettings& settings) {
  const pid_t pid = FetchPid(settings);
  if (pid > 0) return Good(fmt::format("runs, pid {}", pid));
  return Bad("does not run: layers that containerd has not downloaded cannot be read",
             "start kapsule-snapshotter; where it runs, its log says why kapsule-fetch ends"
             " (journalctl -u kapsule-snapshotter)");
}

Finding FetchUser(const NodeSettings& settings) {
  const absl::StatusOr<daemon::User> user = daemon::LookUpUser(settings.fetch_user);
  if (!user.ok())
    return Bad(Message(user.status()),
               fmt::format("useradd --system --no-create-home --shell /usr/sbin/nologin {}",
                           settings.fetch_user));
  if (user->uid == 0)
    return Bad(settings.fetch_user + " is root", "give kapsule-fetch a user of its own");
  const absl::StatusOr<daemon::User> fuse = daemon::LookUpUser(settings.fuse_user);
  if (fuse.ok() && fuse->uid == user->uid)
    return Bad(settings.fetch_user + " is the user that layer keys are given to",
               "give kapsule-fetch, which talks to registries, a user of its own");
  return Good(fmt::format("{} is uid {}", settings.fetch_user, user->uid));
}

Finding HostsDir(const NodeSettings& settings) {
  if (settings.hosts_dir.empty()) return Good("none");
  const absl::StatusOr<daemon::User> user = daemon::LookUpUser(settings.fetch_user);
  if (!user.ok()) return Warn("not known without fetch_user", "see above");
  return JudgeReadable(settings.hosts_dir, *user);
}

Finding Cache(const NodeSettings& settings) {
  const fs::path folder = settings.fetch_cache;
  struct statvfs disk;
  if (statvfs(folder.c_str(), &disk) != 0) {
    if (errno == ENOENT) return Good(folder.string() + " is not made yet");
    return Bad(Message(ErrnoStatus(errno, folder.string())), "set fetch_cache to a folder");
  }
  return JudgeCache(folder, {.used = BytesIn(folder),
                             .limit = static_cast<uint64_t>(settings.fetch_cache_bytes),
                             .free = disk.f_bavail * disk.f_frsize});
}

}  // namespace

Finding JudgeReadable(const fs::path& folder, const daemon::User& user) {
  std::error_code error;
  if (!fs::exists(folder, error) && !error) return Good(folder.string() + " is not there");
  absl::Status status = Internal("cannot read as another user");
  std::thread([&] {
    if (BecomeReader(user)) status = ReadAll(folder);
  }).join();
  if (status.ok()) return Good(fmt::format("{} can be read by uid {}", folder.string(), user.uid));
  return Bad(
      fmt::format("kapsule-fetch, uid {}, cannot read it: {}", user.uid, Message(status)),
      fmt::format("give the user {} read access, certificates and keys in it too (setfacl -R -m"
                  " u:{}:rX {})",
                  user.name.empty() ? std::to_string(user.uid) : user.name, user.uid,
                  folder.string()));
}

Finding JudgeCache(const fs::path& folder, const CacheUse& use) {
  const std::string seen =
      fmt::format("{} MiB of at most {} in {}", use.used >> 20, use.limit >> 20, folder.string());
  if (use.free < kLittle)
    return Bad(fmt::format("{}, whose file system is full ({} MiB free)", seen, use.free >> 20),
               "make room, or put fetch_cache on another file system");
  if (use.used >= use.limit)
    return Warn(seen + ": it is full, and what is read again may be fetched again",
                "raise fetch_cache_bytes");
  if (use.limit - use.used > use.free)
    return Warn(fmt::format("{}, but the file system has only {} MiB free", seen, use.free >> 20),
                "lower fetch_cache_bytes, or put fetch_cache on a larger file system");
  return Good(seen);
}

std::vector<Check> FetchChecks() {
  return {{"kapsule-fetch", true, Fetch},
          {"fetch user", false, FetchUser},
          {"hosts_dir", true, HostsDir},
          {"fetch cache", true, Cache}};
}

}  // namespace kapsule::ctl
