#include "core/daemon/hardening.h"

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/file.h"

namespace kapsule::daemon {
namespace {

// Runs `check` in a child, since what it does cannot be undone.
template <typename Check>
bool InChild(Check check) {
  const pid_t child = fork();
  if (child == 0) _exit(check() ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(HardeningTest, DumpsAreForbidden) {
  EXPECT_TRUE(InChild([] {
    rlimit limit{1, 1};
    return ForbidDumps().ok() && prctl(PR_GET_DUMPABLE) == 0 &&
           getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 0 && limit.rlim_max == 0;
  }));
}

TEST(HardeningTest, ALockThatWouldRunOutIsNotTaken) {
  EXPECT_TRUE(InChild([] {
    const rlimit limit{1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return false;
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
    if (syscall(SYS_capset, &header, none) != 0) return false;
    if (!absl::IsFailedPrecondition(LockMemory())) return false;
    const std::string large(8 << 20, 'x');  // still can be had
    return large.size() == 8 << 20;
  }));
}

TEST(HardeningTest, WithoutALimitMemoryIsLocked) {
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  GTEST_SKIP() << "sanitizers turn mlockall() into nothing";
#endif
#endif
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  ASSERT_TRUE(geteuid() == 0 || limit.rlim_cur == RLIM_INFINITY) << "needs CAP_IPC_LOCK";
  EXPECT_TRUE(InChild([] {
    if (!LockMemory().ok()) return false;
    const UniqueFd status = OpenFile("/proc/self/status", 0).value();
    std::string text(4096, '\0');
    return read(status.get(), text.data(), text.size()) > 0 &&
           text.find("VmLck:\t       0 kB") == std::string::npos;
  }));
}

}  // namespace
}  // namespace kapsule::daemon
