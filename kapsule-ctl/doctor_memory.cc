#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "core/base/file.h"
#include "core/base/proc_file.h"

#include "kapsule-ctl/doctor_host.h"

namespace kapsule::ctl {
namespace {

// Buffers and keys of kapsule-fuse stay far below.
constexpr uint64_t kEnoughLocked = 256 << 20;
constexpr int kCapIpcLock = 14;
// What mounted models leave in page cache is plain; nobody swaps that, but a program
// copies what it reads into memory of its own.
constexpr char kPlain[] = "what programs have read of a model reaches the disk decrypted";

Finding SecretMemory(const NodeSettings&) {
  const UniqueFd fd(static_cast<int>(syscall(SYS_memfd_secret, O_CLOEXEC)));
  const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* page = MAP_FAILED;
  if (fd.valid() && ftruncate(fd.get(), static_cast<off_t>(size)) == 0)
    page = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (page == MAP_FAILED)
    return Warn(fmt::format("no memfd_secret ({}): keys lie in locked memory that is not dumped,"
                            " but that root can read",
                            strerror(errno)),
                "boot Linux 5.14 or later with secretmem.enable=1");
  std::memset(page, 1, size);
  munmap(page, size);
  return Good("works: keys lie where neither /proc nor a debugger reads them");
}

bool HasCapability(int number) {
  std::istringstream status(ReadProcFile("/proc/self/status"));
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("CapEff:"))
      return (std::strtoull(line.c_str() + 7, nullptr, 16) >> number & 1) != 0;
  }
  return false;
}

Finding LockLimit(const NodeSettings&) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return Bad("getrlimit failed", "");
  return JudgeLockLimit(limit.rlim_cur,
                        limit.rlim_cur == RLIM_INFINITY || HasCapability(kCapIpcLock));
}

}  // namespace

Finding JudgeSwaps(const std::string& swaps) {
  std::istringstream lines(swaps);
  std::string line, on_disk;
  std::getline(lines, line);  // the heading
  while (std::getline(lines, line)) {
    const std::string device = line.substr(0, line.find_first_of(" \t"));
    if (!device.empty() && !device.starts_with("/dev/zram"))
      on_disk += (on_disk.empty() ? "" : ", ") + device;
  }
  if (on_disk.empty()) return Good("none on disk");
  return Warn(fmt::format("{}: {}", on_disk, kPlain), "swapoff -a, or swap to an encrypted device");
}

Finding JudgeHibernation(const std::string& resume) {
  if (resume.empty() || resume.starts_with("0:0")) return Good("not set up");
  return Warn(fmt::format("set up, to device {}: {}", resume.substr(0, resume.find('\n')), kPlain),
              "mask it: systemctl mask hibernate.target hybrid-sleep.target");
}

Finding JudgeCrashDumps(const std::string& loaded) {
  if (!loaded.starts_with("1")) return Good("no crash kernel is loaded");
  return Warn("a crash kernel is loaded: a dump holds the page cache of every model, decrypted",
              "disable kdump, or make it leave out user and cache pages (makedumpfile -d 31)");
}

Finding JudgeLockLimit(uint64_t bytes, bool unlimited) {
  if (unlimited) return Good("no limit for kapsule-snapshotter and what it starts");
  const std::string seen = fmt::format("RLIMIT_MEMLOCK is {} KiB", bytes >> 10);
  if (bytes >= kEnoughLocked) return Good(seen);
  return Bad(seen + ": too little for the buffers that models are decrypted in",
             "run the snapshotter with CAP_IPC_LOCK, or set LimitMEMLOCK=infinity in its unit");
}

std::vector<Check> MemoryChecks() {
  return {
      {"memfd_secret", false, SecretMemory},
      {"locked memory", false, LockLimit},
      {"swap", false, [](const NodeSettings&) { return JudgeSwaps(ReadProcFile("/proc/swaps")); }},
      {"hibernation", false,
       [](const NodeSettings&) { return JudgeHibernation(ReadProcFile("/sys/power/resume")); }},
      {"crash dumps", false,
       [](const NodeSettings&) {
         return JudgeCrashDumps(ReadProcFile("/sys/kernel/kexec_crash_loaded"));
       }},
  };
}

}  // namespace kapsule::ctl
