// containerd's configuration in each version, whole and with what goes wrong.
#include "kapsule-ctl/doctor_containerd.h"

#include <gmock/gmock.h>

#include "core/base/file.h"

namespace kapsule::ctl {
namespace {

using testing::HasSubstr;

constexpr ContainerdVersion k16{1, 6, 20}, k17{1, 7, 24}, k2{2, 1, 9};

// A config for each version; their like is in configs/containerd/.
std::string ShippedName(const ContainerdVersion& version) {
  return version.major == 2 ? "2" : version == k16 ? "1.6" : "1.7";
}
std::string Shipped(const ContainerdVersion& version) {
  return ReadFile(
             fmt::format("{}/configs/containerd/{}.toml", PROJECT_SOURCE_DIR, ShippedName(version)),
             1 << 20)
      .value();
}

class DoctorContainerdTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(dir_.data()), nullptr); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  void Write(const std::string& name, const std::string& text) const {
    ASSERT_TRUE(WriteFileAtomic(dir_ + "/" + name, AsBytes(text), 0600).ok());
  }
  ContainerdFacts Facts(const ContainerdVersion& version, const std::string& text) const {
    Write("config.toml", "root = '" + dir_ + "'\n" + text);
    const auto config = LoadContainerdConfig(dir_ + "/config.toml", "kapsule");
    EXPECT_TRUE(config.ok()) << config.status();
    return {config.value_or(ContainerdConfig()), version};
  }
  // The shipped file, `from` of it replaced.
  ContainerdFacts Changed(const ContainerdVersion& version, const std::string& from,
                          const std::string& to) const {
    std::string text = Shipped(version);
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    if (at != std::string::npos) text.replace(at, from.size(), to);
    return Facts(version, text);
  }
  void MakeImageRoot() const {
    ASSERT_TRUE(MakeDirs(dir_ + "/io.containerd.snapshotter.v1.kapsule", 0755).ok());
  }

  std::string dir_ = "/tmp/kapsule-containerd-XXXXXX";
  const NodeSettings settings_ = {};
};

TEST_F(DoctorContainerdTest, TheShippedFilesAreRightForTheirVersion) {
  for (const ContainerdVersion& version : {k16, k17, k2}) {
    const ContainerdFacts facts = Facts(version, Shipped(version));
    EXPECT_EQ(facts.config.version, version.major == 2 ? 3 : 2);
    EXPECT_EQ(GuessVersion(facts.config).major, version.major);
    EXPECT_EQ(GuessVersion(facts.config).minor >= 7, version == k17);
    if (version == k16) {
      EXPECT_EQ(JudgeImageRoot(facts, settings_).grade, Grade::kProblem);
      EXPECT_THAT(JudgeImageRoot(facts, settings_).fix,
                  HasSubstr("ln -s /var/lib/kapsule " + dir_));
      MakeImageRoot();
    }
    for (const auto judge : {JudgeProxyPlugin, JudgeUserNamespaces, JudgeDiffers,
                             JudgeCriSnapshotter, JudgeLabels, JudgeImageRoot, JudgeUnpacking}) {
      const Finding finding = judge(facts, settings_);
      EXPECT_EQ(finding.grade, Grade::kOk) << ShippedName(version) << ": " << finding.seen;
    }
  }
}

TEST_F(DoctorContainerdTest, AMissingOrWrongProxyPluginIsAProblem) {
  const Finding none = JudgeProxyPlugin(Facts(k2, "version = 3\n"), settings_);
  EXPECT_EQ(none.grade, Grade::kProblem);
  EXPECT_THAT(none.fix, HasSubstr("add [proxy_plugins.kapsule] type = \"snapshot\" and address = "
                                  "\"/run/kapsule/snapshotter.sock\""));
  EXPECT_THAT(none.fix, HasSubstr("configs/containerd/2.toml"));
  for (const ContainerdVersion& version : {k16, k17, k2}) {
    const Finding other =
        JudgeProxyPlugin(Changed(version, "\"/run/kapsule", "\"unix:///run/kapsule"), settings_);
    EXPECT_EQ(other.grade, Grade::kProblem);
    EXPECT_THAT(other.seen, HasSubstr("unix:///run/kapsule/snapshotter.sock"));
    EXPECT_EQ(JudgeProxyPlugin(Changed(version, "\"snapshot\"", "\"content\""), settings_).grade,
              Grade::kProblem);
  }
}

TEST_F(DoctorContainerdTest, ADifferIsAProblemWhereContainerdPanicsAtIt) {
  const std::string differ = "[proxy_plugins.d]\ntype = \"diff\"\naddress = \"/d\"\n";
  for (const auto& [version, grade] : {std::pair(k16, Grade::kProblem),
                                       {ContainerdVersion{1, 7, 3}, Grade::kProblem},
                                       {ContainerdVersion{1, 7, 4}, Grade::kWarning},
                                       {k2, Grade::kWarning}})
    EXPECT_EQ(JudgeDiffers(Facts(version, differ), settings_).grade, grade) << version.minor;
}

TEST_F(DoctorContainerdTest, ContainerdIsToAskOurDifferFirst) {
  for (const ContainerdVersion& version : {k17, k2}) {
    for (const auto& [from, to] :
         {std::pair("[\"kapsule-diff\", \"walking\"]", "[\"walking\", \"kapsule-diff\"]"),
          {"[proxy_plugins.kapsule-diff]", "[proxy_plugins.other-diff]"},
          {"[\"kapsule-diff\", \"walking\"]", "[]"}}) {
      const Finding finding = JudgeDiffers(Changed(version, from, to), settings_);
      EXPECT_EQ(finding.grade, Grade::kWarning) << to;
      EXPECT_THAT(finding.fix, HasSubstr("default = [\"kapsule-diff\", \"walking\"]"));
    }
  }
}

TEST_F(DoctorContainerdTest, OwnersAreMappedByContainerd2AndBeforeItNotAtAll) {
  const char* const declared = "capabilities = [\"remap-ids\"]";
  const Finding copies = JudgeUserNamespaces(Changed(k2, declared, ""), settings_);
  EXPECT_EQ(copies.grade, Grade::kWarning);
  EXPECT_THAT(copies.fix, HasSubstr(declared));
  const Finding early = JudgeUserNamespaces(
      Changed(k17, "type = \"snapshot\"", fmt::format("type = \"snapshot\"\n{}", declared)),
      settings_);
  EXPECT_EQ(early.grade, Grade::kWarning);
  EXPECT_THAT(early.fix, HasSubstr("remove it"));
}

TEST_F(DoctorContainerdTest, AnUnpackConfigThatAsksOurDifferUnpacksNoOrdinaryLayer) {
  const Finding finding =
      JudgeUnpacking(Changed(k2, "differ = \"walking\"", "differ = \"kapsule-diff\""), settings_);
  EXPECT_EQ(finding.grade, Grade::kProblem);
  EXPECT_THAT(finding.fix, HasSubstr("differ = \"walking\""));
}

TEST_F(DoctorContainerdTest, PodsThatUseAnotherSnapshotterAreWarnedOf) {
  for (const ContainerdVersion& version : {k16, k17, k2}) {
    const Finding other =
        JudgeCriSnapshotter(Changed(version, "snapshotter = \"kapsule\"\n", "\n"), settings_);
    EXPECT_EQ(other.grade, Grade::kWarning);
    EXPECT_EQ(other.seen, "pods use overlayfs, not kapsule");
    const auto off = Facts(version, "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n");
    EXPECT_EQ(JudgeCriSnapshotter(off, settings_).grade, Grade::kOk);
  }
  const auto runtime =
      Facts(k17,
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.models]\n"
            "snapshotter = \"kapsule\"\n");
  EXPECT_EQ(JudgeCriSnapshotter(runtime, settings_).seen, "kapsule for pods of the runtime models");
}

// containerd 2.x takes the old section over only where it has runtimes.
TEST_F(DoctorContainerdTest, AnOldFileUnderContainerd2IsReadAsContainerd2ReadsIt) {
  const std::string old =
      "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"kapsule\"\n"
      "disable_snapshot_annotations = false\n";
  const Finding ignored = JudgeCriSnapshotter(Facts(k2, old), settings_);
  EXPECT_EQ(ignored.grade, Grade::kProblem);
  EXPECT_THAT(ignored.fix, HasSubstr("io.containerd.cri.v1.images"));
  const auto taken =
      Facts(k2, old +
                    "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n"
                    "runtime_type = \"io.containerd.runc.v2\"\n");
  EXPECT_EQ(JudgeCriSnapshotter(taken, settings_).grade, Grade::kOk);
  EXPECT_EQ(JudgeLabels(taken, settings_).grade, Grade::kOk);
  EXPECT_EQ(JudgeUnpacking(taken, settings_).grade, Grade::kWarning);  // only ctr needs it
}

TEST_F(DoctorContainerdTest, LabelsThatAreOffAreWarnedOf) {
  for (const ContainerdVersion& version : {k16, k17})
    EXPECT_EQ(
        JudgeLabels(Changed(version, "disable_snapshot_annotations = false", ""), settings_).grade,
        Grade::kWarning);
  const Finding off =
      JudgeLabels(Changed(k2, "enable_remote_snapshot_annotations = \"true\"", ""), settings_);
  EXPECT_EQ(off.grade, Grade::kWarning);
  EXPECT_THAT(off.fix, HasSubstr("[proxy_plugins.kapsule.exports]"));
  EXPECT_EQ(JudgeLabels(Changed(k2, "  snapshotter = \"kapsule\"\n",
                                "  snapshotter = \"kapsule\"\n  use_local_image_pull = true\n"),
                        settings_)
                .grade,
            Grade::kWarning);
}

TEST_F(DoctorContainerdTest, AnImageRootThatTheKubeletDoesNotFindIsAProblem) {
  const Finding unknown = JudgeImageRoot(Facts({1, 7, 15}, Shipped(k17)), settings_);
  EXPECT_EQ(unknown.grade, Grade::kProblem);  // the first with exports is 1.7.16
  EXPECT_THAT(unknown.fix, HasSubstr("ln -s "));
  for (const ContainerdVersion& version : {k17, k2}) {
    const Finding none =
        JudgeImageRoot(Changed(version, "root = \"/var/lib/kapsule\"", ""), settings_);
    EXPECT_EQ(none.grade, Grade::kProblem);
    EXPECT_THAT(none.fix, HasSubstr("set root = \"/var/lib/kapsule\""));
    const Finding other =
        JudgeImageRoot(Changed(version, "\"/var/lib/kapsule\"", "\"/elsewhere\""), settings_);
    EXPECT_THAT(other.seen, HasSubstr("/elsewhere"));
  }
}

TEST_F(DoctorContainerdTest, WithoutAnUnpackConfigNoPodStartsOnContainerd2) {
  const std::string text = Shipped(k2);
  const ContainerdFacts facts = Facts(k2, text.substr(0, text.find("[[plugins")));
  const Finding finding = JudgeUnpacking(facts, settings_);
  EXPECT_EQ(finding.grade, Grade::kProblem);
  EXPECT_THAT(finding.seen, HasSubstr("no unpack platforms defined"));
}

TEST_F(DoctorContainerdTest, ImportsReplaceWholeSections) {
  ASSERT_TRUE(MakeDirs(dir_ + "/conf.d", 0755).ok());
  Write("conf.d/a.toml",
        "version = 1\n[proxy_plugins.kapsule]\ntype = \"snapshot\"\n"
        "address = \"/imported.sock\"\n");
  Write("other.toml",
        "imports = [\"config.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\"]\n"
        "sandbox_image = \"pause\"\n");  // without snapshotter: it is gone
  const auto facts =
      Facts(k17, "imports = [\"" + dir_ + "/conf.d/*.toml\", \"other.toml\"]\n" + Shipped(k17));
  EXPECT_EQ(facts.config.version, 2);
  EXPECT_EQ(facts.config.proxies.at("kapsule").address, "/imported.sock");
  EXPECT_TRUE(facts.config.proxies.at("kapsule").exports.empty());
  EXPECT_EQ(JudgeCriSnapshotter(facts, settings_).grade, Grade::kWarning);
  EXPECT_TRUE(facts.config.unpacked.contains("kapsule"));
}

TEST_F(DoctorContainerdTest, AConfigThatCannotBeReadIsNamedWithItsLine) {
  const auto error = [this] {
    return LoadContainerdConfig(dir_ + "/config.toml", "kapsule").status();
  };
  EXPECT_TRUE(absl::IsNotFound(error()));
  Write("config.toml", "version = 2\nroot = \n");
  EXPECT_THAT(Message(error()), HasSubstr("config.toml:2: "));
  Write("config.toml", "imports = ['none.toml']\n");
  EXPECT_THAT(Message(error()), HasSubstr("imported by " + dir_ + "/config.toml"));
  for (const char* odd : {"imports = 7\nplugins = 1\nproxy_plugins = []\n", "imports = [1]\n",
                          "version = 'x'\n[proxy_plugins]\nkapsule = 1\n",
                          "[plugins.'io.containerd.transfer.v1.local']\nunpack_config = [1]\n",
                          "[plugins.'io.containerd.service.v1.diff-service']\ndefault = [1]\n",
                          "[proxy_plugins.d]\ncapabilities = [[]]\n"}) {
    Write("config.toml", odd);
    (void)error();  // no crash
  }
}

TEST_F(DoctorContainerdTest, UnderstandsVersions) {
  EXPECT_EQ(ContainerdVersion::Parse("1.6.20~ds1"), k16);
  EXPECT_EQ(ContainerdVersion::Parse("v2.1.9"), k2);
  EXPECT_EQ(ContainerdVersion::Parse("v2.3"), (ContainerdVersion{2, 3, 0}));
  for (const char* wrong : {"", "v", "2", "next"})
    EXPECT_EQ(ContainerdVersion::Parse(wrong), std::nullopt) << wrong;
}

}  // namespace
}  // namespace kapsule::ctl
