#include "kapsule-ctl/doctor.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include "core/base/file.h"
#include "kapsule-ctl/doctor_host.h"

namespace kapsule::ctl {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(DoctorTest, ChecksThatNeedRootAreNotRunWithoutIt) {
  int runs = 0;
  const std::vector<Check> checks = {
      {"a", true, [&](const NodeSettings&) { return ++runs, Good("fine"); }},
      {"b", false, [&](const NodeSettings&) { return ++runs, Bad("bad", "mend it"); }}};
  const auto without = Diagnose(checks, {}, false);
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(without[0].finding.grade, Grade::kWarning);
  EXPECT_EQ(Diagnose(checks, {}, true)[0].finding.grade, Grade::kOk);
  EXPECT_EQ(runs, 3);
}

TEST(DoctorTest, ChecksSeeTheSettings) {
  NodeSettings settings;
  settings.address = "/x.sock";
  const std::vector<Check> checks = {
      {"a", false, [](const NodeSettings& seen) { return Good(seen.address); }}};
  EXPECT_EQ(Diagnose(checks, settings, true)[0].finding.seen, "/x.sock");
}

TEST(DoctorTest, OnlyProblemsFailIt) {
  const Diagnosis good{"a", Good("fine")}, warning{"b", Warn("odd", "look")},
      bad{"c", Bad("broken\n", "mend it")};
  EXPECT_TRUE(Verdict({good, warning}).ok());
  EXPECT_THAT(Message(Verdict({bad, good, bad})), HasSubstr("2 problems"));
  EXPECT_THAT(Message(Verdict({bad})), HasSubstr("1 problem"));

  const std::string text = FormatDiagnoses({good, warning, bad});
  EXPECT_THAT(text, HasSubstr("ok       a                 fine\nwarning  b                 odd\n"));
  EXPECT_THAT(text, HasSubstr("-> mend it\n1 problem, 1 warning\n"));
  EXPECT_THAT(text, Not(HasSubstr("broken\n\n")));

  const Json json = DiagnosesJson({good, warning, bad});
  EXPECT_EQ(json["problems"], 1);
  EXPECT_EQ(json["warnings"], 1);
  EXPECT_EQ(json["checks"][2]["grade"], "problem");
  EXPECT_EQ(json["checks"][2]["fix"], "mend it");
}

TEST(DoctorTest, OldKernelsAreAProblem) {
  for (const char* good : {"6.1.0-56-amd64", "5.8.0", "5.14.0-427.el9.x86_64", "7.0-rc1"})
    EXPECT_EQ(JudgeKernel(good).grade, Grade::kOk) << good;
  for (const char* bad : {"5.7.19", "4.18.0-553.el8", "3.10"})
    EXPECT_EQ(JudgeKernel(bad).grade, Grade::kProblem) << bad;
  EXPECT_EQ(JudgeKernel("next").grade, Grade::kWarning);
}

TEST(DoctorTest, RequestTimeoutsAreAProblem) {
  EXPECT_EQ(JudgeRequestTimeout("max_request_timeout", "").grade, Grade::kOk);
  EXPECT_EQ(JudgeRequestTimeout("max_request_timeout", "0").grade, Grade::kOk);
  const Finding finding = JudgeRequestTimeout("max_request_timeout", "30");
  EXPECT_EQ(finding.grade, Grade::kProblem);
  EXPECT_THAT(finding.fix, HasSubstr("fs.fuse.max_request_timeout=0"));
}

TEST(DoctorTest, SwapOnDiskIsNamed) {
  const std::string heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
  EXPECT_EQ(JudgeSwaps("").grade, Grade::kOk);
  EXPECT_EQ(JudgeSwaps(heading).grade, Grade::kOk);
  EXPECT_EQ(JudgeSwaps(heading + "/dev/zram0  partition\t8\t0\t100\n").grade, Grade::kOk);
  const Finding finding =
      JudgeSwaps(heading + "/dev/sda2  partition\t8\t0\t-2\n/swap.img\tfile\t8\t0\t-3\n");
  EXPECT_EQ(finding.grade, Grade::kWarning);
  EXPECT_THAT(finding.seen, HasSubstr("/dev/sda2, /swap.img: "));
}

TEST(DoctorTest, HibernationAndCrashDumpsAreWarnedOf) {
  EXPECT_EQ(JudgeHibernation("").grade, Grade::kOk);
  EXPECT_EQ(JudgeHibernation("0:0\n").grade, Grade::kOk);
  EXPECT_THAT(JudgeHibernation("8:2\n").seen, HasSubstr("device 8:2: "));
  EXPECT_EQ(JudgeCrashDumps("").grade, Grade::kOk);
  EXPECT_EQ(JudgeCrashDumps("0\n").grade, Grade::kOk);
  EXPECT_EQ(JudgeCrashDumps("1\n").grade, Grade::kWarning);
}

TEST(DoctorTest, LittleLockedMemoryIsAProblem) {
  EXPECT_EQ(JudgeLockLimit(0, true).grade, Grade::kOk);
  EXPECT_EQ(JudgeLockLimit(uint64_t{1} << 30, false).grade, Grade::kOk);
  EXPECT_THAT(JudgeLockLimit(8 << 20, false).seen, HasSubstr("8192 KiB"));
}

TEST(DoctorTest, ThisKernelMountsViewsAndNothingIsLeft) {
  ASSERT_EQ(geteuid(), 0u) << "mounts need root";
  for (const char* way : {"auto", "loop"}) {
    NodeSettings settings;
    settings.view_mount = way;
    for (const auto& [name, finding] : Diagnose(MountChecks(), settings, true))
      EXPECT_EQ(finding.grade, Grade::kOk) << name << ": " << finding.seen;
  }
  for (const auto& entry : std::filesystem::directory_iterator("/var/tmp"))
    EXPECT_THAT(entry.path().string(), Not(HasSubstr("kapsule-doctor")));
  NodeSettings wrong;
  wrong.view_mount = "tape";
  const auto diagnoses = Diagnose(MountChecks(), wrong, true);
  EXPECT_THAT(FormatDiagnoses(diagnoses), HasSubstr("view_mount is \"tape\""));
}

class NodeSettingsTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(dir_.data()), nullptr); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  absl::StatusOr<NodeSettings> Load(const std::string& text) {
    EXPECT_TRUE(WriteFileAtomic(dir_ + "/x.toml", AsBytes(text), 0600).ok());
    return LoadNodeSettings(dir_ + "/x.toml");
  }
  std::string dir_ = "/tmp/kapsule-settings-XXXXXX";
};

TEST_F(NodeSettingsTest, DefaultsAreThoseOfTheShippedConfig) {
  const auto shipped = LoadNodeSettings(PROJECT_SOURCE_DIR "/configs/kapsule-snapshotter.toml");
  ASSERT_TRUE(shipped.ok()) << shipped.status();
  const NodeSettings defaults;
  EXPECT_EQ(shipped->root, defaults.root);
  EXPECT_EQ(shipped->address, defaults.address);
  EXPECT_EQ(shipped->snapshotter_name, defaults.snapshotter_name);
  EXPECT_EQ(shipped->containerd_address, defaults.containerd_address);
  EXPECT_EQ(shipped->content_root, defaults.content_root);
  EXPECT_EQ(shipped->keyprovider_socket, defaults.keyprovider_socket);
  EXPECT_EQ(shipped->fuse_user, defaults.fuse_user);
  EXPECT_EQ(shipped->view_mount, defaults.view_mount);
  EXPECT_EQ(shipped->fetch_user, defaults.fetch_user);
  EXPECT_EQ(shipped->fetch_cache, defaults.fetch_cache);
  EXPECT_EQ(shipped->fetch_cache_bytes, defaults.fetch_cache_bytes);
  EXPECT_EQ(shipped->hosts_dir, defaults.hosts_dir);
}

TEST_F(NodeSettingsTest, TakesWhatItKnowsAndLeavesTheRest) {
  const auto settings = Load("root = '/r'\nopen_timeout_ms = 5\nview_mount = 'loop'\n");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->root, "/r");
  EXPECT_EQ(settings->view_mount, "loop");
  EXPECT_EQ(settings->address, NodeSettings().address);
}

TEST_F(NodeSettingsTest, AnErrorNamesFileAndLine) {
  EXPECT_THAT(Message(Load("\nroot = 7\n").status()), HasSubstr("x.toml:2: root must be a string"));
  EXPECT_THAT(Message(Load("root = \n").status()), HasSubstr("x.toml:1: "));
  EXPECT_THAT(Message(Load("fetch_cache_bytes = '1'").status()),
              HasSubstr("x.toml:1: fetch_cache_bytes must be a number"));
  EXPECT_TRUE(absl::IsNotFound(LoadNodeSettings(dir_ + "/none").status()));
}

}  // namespace
}  // namespace kapsule::ctl
