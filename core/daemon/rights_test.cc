#include "core/daemon/rights.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
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

TEST(RightsTest, NothingIsLeftOfRoot) {
  ASSERT_EQ(geteuid(), 0u) << "run this as root";
  EXPECT_TRUE(InChild([] {
    const UniqueFd file = OpenFile("/proc/self/status", O_RDONLY | O_CLOEXEC).value();
    if (!GiveUpRights(65533, 65532).ok()) return false;
    std::string text(4096, '\0');
    if (read(file.get(), text.data(), text.size()) <= 0) return false;
    for (const char* line :
         {"Uid:\t65533\t65533\t65533\t65533", "Gid:\t65532\t65532\t65532\t65532", "Groups:\t \n",
          "CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
          "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"})
      if (text.find(line) == std::string::npos) return false;
    return prctl(PR_GET_DUMPABLE) == 0;
  }));
}

TEST(RightsTest, RootIsNoUserToBecome) {
  EXPECT_EQ(GiveUpRights(0, 5).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GiveUpRights(5, 0).code(), absl::StatusCode::kInvalidArgument);
}

TEST(RightsTest, OnlyRootCanGiveThemUp) {
  ASSERT_EQ(geteuid(), 0u) << "run this as root";
  EXPECT_TRUE(InChild([] {
    return setresuid(65533, 65533, 65533) == 0 &&
           GiveUpRights(65532, 65532).code() == absl::StatusCode::kPermissionDenied;
  }));
}

}  // namespace
}  // namespace kapsule::daemon
