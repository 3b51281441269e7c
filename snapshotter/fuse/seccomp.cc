#include "snapshotter/fuse/seccomp.h"

#include <absl/base/internal/sysinfo.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <malloc.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <memory>
#include <vector>

#include "core/base/log.h"
#include "snapshotter/fuse/forbidden_call.h"

namespace kapsule::fuse {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitizer = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitizer = true;
#else
constexpr bool kSanitizer = false;
#endif
#else
constexpr bool kSanitizer = false;
#endif

// Whatever their arguments. The clocks are calls where the vDSO has none.
constexpr const char* kAllowed[] = {
    // descriptors that it has
    "read", "readv", "pread64", "preadv", "write", "writev", "pwrite64", "close", "fstat",
    "fstatfs", "lseek", "ftruncate", "fallocate", "fadvise64", "poll", "ppoll",
    // new ones of no path
    "memfd_create", "eventfd2", "signalfd4",
    // unix sockets
    "connect", "sendmsg", "recvmsg", "sendto", "recvfrom", "shutdown", "getsockopt",
    // memory
    "brk", "munmap", "mremap", "madvise", "mlock", "mlock2", "munlock",
    // threads and time
    "futex", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "sched_getparam",
    "sched_getscheduler", "getcpu", "gettid", "getpid", "clock_gettime", "clock_getres",
    "gettimeofday", "time", "nanosleep", "clock_nanosleep", "getrandom", "restart_syscall", "exit",
    "exit_group",
    // signals
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"};

// Allowed where `argument`, of which `mask` is looked at, is `value`.
struct Conditional {
  const char* call;
  unsigned argument;
  uint64_t value;
  uint64_t mask = UINT32_MAX;
};
constexpr Conditional kConditional[] = {
    {"socket", 0, AF_UNIX},
    {"socketpair", 0, AF_UNIX},
    {"setsockopt", 1, SOL_SOCKET},
    {"mmap", 2, 0, PROT_EXEC},
    {"mprotect", 2, 0, PROT_EXEC},
    {"clone", 0, CLONE_THREAD, CLONE_THREAD},
    {"newfstatat", 3, AT_EMPTY_PATH, AT_EMPTY_PATH},  // fstat(3)
    {"fcntl", 1, F_DUPFD_CLOEXEC},
    {"fcntl", 1, F_GETFD},
    {"fcntl", 1, F_SETFD},
    {"fcntl", 1, F_GETFL},
    {"fcntl", 1, F_SETFL},  // blobs whose direct reads fail
    {"fcntl", 1, F_ADD_SEALS},
    {"fcntl", 1, F_GET_SEALS},
    {"prctl", 0, PR_SET_NAME},
    {"prctl", 0, 0x53564d41},  // PR_SET_VMA, names of memory
};

struct Release {
  void operator()(void* filter) const { seccomp_release(filter); }
};
using Filter = std::unique_ptr<void, Release>;

absl::Status Check(int result, const std::string& what) {
  if (result == 0) return absl::OkStatus();
  return FailedPrecondition("system call filter: {}: {}", what, strerror(-result));
}

absl::Status Add(const Filter& filter, uint32_t action, const char* name,
                 const std::vector<scmp_arg_cmp>& conditions = {}) {
  const int number = seccomp_syscall_resolve_name(name);
  if (number < 0) return absl::OkStatus();  // not on this architecture
  return Check(seccomp_rule_add_array(filter.get(), action, number,
                                      static_cast<unsigned>(conditions.size()), conditions.data()),
               name);
}

absl::Status SetAttributes(const Filter& filter) {
  // Threads that a library may have started before are filtered as well.
  RETURN_IF_ERROR(Check(seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_TSYNC, 1), "TSYNC"));
  RETURN_IF_ERROR(Check(
      seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS), "BADARCH"));
  // Nobody's code runs here but ours: kernels before 5.16 would slow it down.
  return Check(seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_SSB, 1), "SPEC_ALLOW");
}

absl::Status AddRules(const Filter& filter) {
  for (const char* name : kAllowed) RETURN_IF_ERROR(Add(filter, SCMP_ACT_ALLOW, name));
  for (const Conditional& rule : kConditional)
    RETURN_IF_ERROR(Add(filter, SCMP_ACT_ALLOW, rule.call,
                        {SCMP_CMP64(rule.argument, SCMP_CMP_MASKED_EQ, rule.mask, rule.value)}));
  // abort() and pthread_kill().
  RETURN_IF_ERROR(
      Add(filter, SCMP_ACT_ALLOW, "tgkill",
          {SCMP_CMP64(0, SCMP_CMP_MASKED_EQ, ~uint64_t{0}, static_cast<uint64_t>(getpid()))}));
  // Its flags lie in memory, which a filter does not see; glibc then uses clone.
  return Add(filter, SCMP_ACT_ERRNO(ENOSYS), "clone3");
}

}  // namespace

absl::Status ReadFilesOfLibraries() {
  tzset();
  // A contended absl::Mutex asks how long it pays to spin, and what a second is.
  (void)absl::base_internal::NumCPUs();
  (void)absl::base_internal::NominalCPUFrequency();
  // Only heaps beside the first one ask for the kernel's overcommit policy.
  if (!kSanitizer && mallopt(M_ARENA_MAX, 1) != 1)  // whose heap is another one
    return FailedPrecondition("mallopt M_ARENA_MAX failed");
  return absl::OkStatus();
}

absl::Status AllowOnlyNeededCalls() {
  if (kSanitizer) {
    log::warn("a build with a sanitizer: system calls are not filtered");
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(ReportForbiddenCalls());
  const Filter filter(seccomp_init(SCMP_ACT_TRAP));
  if (filter == nullptr) return ResourceExhausted("no memory for the system call filter");
  RETURN_IF_ERROR(SetAttributes(filter));
  RETURN_IF_ERROR(AddRules(filter));
  return Check(seccomp_load(filter.get()), "load");
}

}  // namespace kapsule::fuse
