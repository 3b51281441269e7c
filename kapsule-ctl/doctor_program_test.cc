// kapsule-ctl doctor: the program itself, on a machine without a node and with parts
// of one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/unix_socket.h"
#include "core/containerd/testing.h"
#include "kapsule-ctl/program_test_util.h"

namespace kapsule::ctl {
namespace {
using testing::HasSubstr;

class DoctorProgramTest : public testing::Test {
 protected:
  void WriteConfig(const std::string& containerd, const std::string& content) {
    WriteText(folder_ / "x.toml",
              fmt::format("root = '{0}/root'\ncontainerd_address = '{1}'\ncontent_root = '{2}'\n"
                          "keyprovider_socket = '{0}/keys/keys.sock'\nfuse_user = '61001'\n",
                          folder_.path().string(), containerd, content));
  }
  Ran Doctor(std::vector<std::string> more) {
    more.insert(more.begin(), {KAPSULE_CTL, "doctor", "--config", folder_ / "x.toml", "--address",
                               folder_ / "snapshotter.sock"});
    return RunProgram(folder_, more);
  }
  // name → grade of the checks of --json.
  std::map<std::string, std::string> Grades() {
    const Ran ran = Doctor({"--json"});
    const auto json = ParseJson(ran.out, 1 << 20);
    EXPECT_TRUE(json.ok()) << json.status() << ran.err;
    std::map<std::string, std::string> grades;
    if (!json.ok()) return grades;
    for (const Json& check : (*json)["checks"]) grades[check["name"]] = check["grade"];
    EXPECT_EQ(ran.code, (*json)["problems"] == 0 ? 0 : 1) << ran.err;
    return grades;
  }
  TempFolder folder_;
};

TEST_F(DoctorProgramTest, SaysWhatIsMissingAndHowToGetIt) {
  WriteConfig(folder_ / "containerd.sock", folder_ / "content");
  const Ran ran = Doctor({});
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.out, HasSubstr("start kapsule-snapshotter"));
  EXPECT_THAT(ran.out, HasSubstr("start kapsule-keyprovider"));
  EXPECT_THAT(ran.out, HasSubstr("start containerd"));
  EXPECT_THAT(ran.err, HasSubstr("problems"));
}

TEST_F(DoctorProgramTest, KnowsAContainerdWithItsPluginFromOneWithout) {
  ASSERT_EQ(Doctor({"--json"}).code, 4) << "a config that is named and missing is an error";
  auto containerd = containerd::TestContainerd::Start();
  ASSERT_TRUE(containerd.ok()) << containerd.status();
  WriteConfig((*containerd)->socket(), (*containerd)->content_root());
  std::map<std::string, std::string> grades = Grades();
  EXPECT_EQ(grades["containerd"], "problem");
  EXPECT_EQ(grades["stores"], "ok");  // both below /tmp
  EXPECT_EQ(grades["fuse user"], "ok");
  EXPECT_EQ(grades["keyprovider"], "problem");

  containerd->reset();
  containerd = containerd::TestContainerd::Start(
      fmt::format("[proxy_plugins.kapsule]\ntype = \"snapshot\"\naddress = \"{}\"\n",
                  (folder_ / "snapshotter.sock").string()));
  ASSERT_TRUE(containerd.ok()) << containerd.status();
  WriteConfig((*containerd)->socket(), (*containerd)->content_root());
  std::filesystem::create_directory(folder_ / "keys");
  const auto keys = ListenUnix(folder_ / "keys/keys.sock", SOCK_SEQPACKET, 0600);
  ASSERT_TRUE(keys.ok()) << keys.status();
  grades = Grades();
  EXPECT_EQ(grades["containerd"], "ok");
  EXPECT_EQ(grades["keyprovider"], "ok");
  EXPECT_EQ(grades["snapshotter"], "problem");
  WriteText(folder_ / "keys/other", "");
  EXPECT_EQ(Grades()["keyprovider"], "warning");
}

}  // namespace
}  // namespace kapsule::ctl
