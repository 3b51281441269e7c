#include "snapshotter/holder/seccomp.h"

#include <seccomp.h>

#include <cerrno>
#include <memory>

namespace kapsule::holder {
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

constexpr int kAllowed[] = {
    // its work
    SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(accept4), SCMP_SYS(recvmsg), SCMP_SYS(sendmsg),
    SCMP_SYS(getsockopt), SCMP_SYS(setsockopt), SCMP_SYS(close), SCMP_SYS(nanosleep),
    SCMP_SYS(clock_nanosleep),
    // the log and memory for it
    SCMP_SYS(write), SCMP_SYS(writev), SCMP_SYS(clock_gettime), SCMP_SYS(futex), SCMP_SYS(brk),
    SCMP_SYS(mmap), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise),
    // its end
    SCMP_SYS(rt_sigreturn), SCMP_SYS(restart_syscall), SCMP_SYS(rt_sigprocmask), SCMP_SYS(getpid),
    SCMP_SYS(gettid), SCMP_SYS(tgkill), SCMP_SYS(exit), SCMP_SYS(exit_group)};

}  // namespace

absl::Status AllowFewSystemCalls() {
  if (kSanitizer) return absl::OkStatus();  // which makes calls of its own, until the end
  const std::unique_ptr<void, decltype(&seccomp_release)> filter(
      seccomp_init(SCMP_ACT_ERRNO(EPERM)), &seccomp_release);
  if (filter == nullptr) return ResourceExhausted("no memory for a system call filter");
  for (const int call : kAllowed) {
    const int error = seccomp_rule_add(filter.get(), SCMP_ACT_ALLOW, call, 0);
    if (error != 0) return ErrnoStatus(-error, "system call filter");
  }
  const int error = seccomp_load(filter.get());
  return error == 0 ? absl::OkStatus() : ErrnoStatus(-error, "load the system call filter");
}

}  // namespace kapsule::holder
