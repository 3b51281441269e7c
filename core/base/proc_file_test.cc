#include "core/base/proc_file.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/status.h"

namespace kapsule {
namespace {

TEST(ProcFileTest, AFileWithoutASizeIsReadWhole) {
  EXPECT_NE(ReadProcFile("/proc/self/status").find("\nPid:\t" + std::to_string(getpid()) + "\n"),
            std::string::npos);
}

TEST(ProcFileTest, WhatCannotBeReadIsEmpty) {
  EXPECT_EQ(ReadProcFile("/proc/self/no such file"), "");
  EXPECT_EQ(ReadProcFile("/proc/self"), "");
  EXPECT_EQ(ReadProcFile("/proc/self/mem"), "");
}

// Its stat can be opened, but is gone when it is read.
TEST(ProcFileTest, AProcessThatHasEndedIsEmpty) {
  const pid_t pid = fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) _exit(0);
  waitpid(pid, nullptr, 0);
  EXPECT_EQ(ReadProcFile(fmt::format("/proc/{}/stat", pid)), "");
}

}  // namespace
}  // namespace kapsule
