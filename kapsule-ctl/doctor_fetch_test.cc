#include "kapsule-ctl/doctor_fetch.h"

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"

namespace kapsule::ctl {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;

class ReadableTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(geteuid(), 0u) << "reading as another user needs root";
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
    ASSERT_EQ(chmod(dir_.c_str(), 0755), 0);
    ASSERT_TRUE(MakeDirs(hosts() / "r.test", 0755).ok());
    ASSERT_TRUE(WriteFileAtomic(hosts() / "r.test/hosts.toml", AsBytes("x"), 0644).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::filesystem::path hosts() const { return dir_ + "/certs.d"; }

  std::string dir_ = "/tmp/kapsule-readable-XXXXXX";
  const daemon::User user_{61009, 61009, ""};
};

TEST_F(ReadableTest, WhatEverybodyMayReadOrIsMissingIsFine) {
  EXPECT_EQ(JudgeReadable(hosts(), user_).grade, Grade::kOk);
  EXPECT_EQ(JudgeReadable(dir_ + "/none", user_).grade, Grade::kOk);
}

TEST_F(ReadableTest, AFileOfRootAloneIsNamed) {
  ASSERT_TRUE(WriteFileAtomic(hosts() / "r.test/client.key", AsBytes("x"), 0600).ok());
  const Finding finding = JudgeReadable(hosts(), user_);
  EXPECT_EQ(finding.grade, Grade::kProblem);
  EXPECT_THAT(finding.seen, HasSubstr((hosts() / "r.test/client.key").string()));
  EXPECT_THAT(finding.fix, HasSubstr("u:61009:rX"));
  // This thread is root still.
  EXPECT_TRUE(ReadFile(hosts() / "r.test/client.key", 10).ok());
}

TEST_F(ReadableTest, AFolderOfRootAloneIsAProblem) {
  ASSERT_EQ(chmod((hosts() / "r.test").c_str(), 0700), 0);
  EXPECT_EQ(JudgeReadable(hosts(), user_).grade, Grade::kProblem);
  ASSERT_EQ(chmod((hosts() / "r.test").c_str(), 0755), 0);
  ASSERT_EQ(chmod(dir_.c_str(), 0700), 0);
  EXPECT_EQ(JudgeReadable(hosts(), user_).grade, Grade::kProblem);
}

TEST(CacheTest, ACacheWithoutRoomIsSaid) {
  const auto grade = [](const CacheUse& use) { return JudgeCache("/c", use).grade; };
  EXPECT_EQ(grade({.used = 0, .limit = 1000 * kMiB, .free = 2000 * kMiB}), Grade::kOk);
  EXPECT_EQ(grade({.used = 900 * kMiB, .limit = 1000 * kMiB, .free = 300 * kMiB}), Grade::kOk);
  EXPECT_EQ(grade({.used = 1000 * kMiB, .limit = 1000 * kMiB, .free = 300 * kMiB}),
            Grade::kWarning);
  EXPECT_EQ(grade({.used = 0, .limit = 1000 * kMiB, .free = 300 * kMiB}), Grade::kWarning);
  EXPECT_EQ(grade({.used = 0, .limit = 1000 * kMiB, .free = 10 * kMiB}), Grade::kProblem);
}

}  // namespace
}  // namespace kapsule::ctl
