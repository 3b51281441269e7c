// kapsule-ctl keys, help and usage, with the program itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "core/crypt/keys.h"
#include "kapsule-ctl/program_test_util.h"

namespace kapsule::ctl {
namespace {
using testing::HasSubstr;

unsigned ModeOf(const std::filesystem::path& path) {
  struct stat st;
  return stat(path.c_str(), &st) == 0 ? st.st_mode & 07777 : 0;
}

class KeysProgramTest : public testing::Test {
 protected:
  Ran Ctl(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), KAPSULE_CTL);
    return RunProgram(folder_, arguments);
  }
  TempFolder folder_;
};

TEST_F(KeysProgramTest, MakesAPairThatBelongsTogether) {
  const std::string keys = (folder_ / "deep/keys").string();
  const Ran ran = Ctl({"keys", "generate", "--type", "rsa-2048", "-o", keys, "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto result = ParseJson(ran.out, 4096);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ((*result)["type"], "rsa-2048");
  EXPECT_EQ(ModeOf(keys + "/private.pem"), 0600u);
  EXPECT_EQ(ModeOf(keys + "/public.pem"), 0644u);
  const auto private_key = crypt::LoadPrivateKey((*result)["private"].get<std::string>());
  const auto public_key = crypt::LoadPublicKey((*result)["public"].get<std::string>());
  ASSERT_TRUE(private_key.ok() && public_key.ok());
  EXPECT_EQ((*result)["fingerprint"], crypt::Fingerprint(*private_key));
  EXPECT_EQ((*result)["fingerprint"], crypt::Fingerprint(*public_key));
}

TEST_F(KeysProgramTest, NeverReplacesAKeyUnasked) {
  const std::string keys = (folder_ / "keys").string();
  ASSERT_EQ(Ctl({"keys", "generate", "--type", "ec-p256", "-o", keys}).code, 0);
  const std::string before = ReadText(keys + "/private.pem");
  const Ran refused = Ctl({"keys", "generate", "--type", "ec-p256", "-o", keys});
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.err, HasSubstr("private.pem; --force replaces it"));
  EXPECT_EQ(ReadText(keys + "/private.pem"), before);
  EXPECT_EQ(Ctl({"keys", "generate", "--type", "ec-p256", "-o", keys, "--force"}).code, 0);
  EXPECT_NE(ReadText(keys + "/private.pem"), before);
}

TEST_F(KeysProgramTest, AnUnwritableFolderLeavesNoKey) {
  WriteText(folder_ / "file", "");
  const Ran ran =
      Ctl({"keys", "generate", "--type", "ec-p256", "-o", (folder_ / "file/x").string()});
  EXPECT_NE(ran.code, 0);
  EXPECT_THAT(ran.err, HasSubstr("file"));
}

TEST_F(KeysProgramTest, UsageErrorsAreTwoAndHelpIsNone) {
  for (const std::vector<std::string>& bad :
       std::vector<std::vector<std::string>>{{},
                                             {"nonsense"},
                                             {"keys"},
                                             {"keys", "generate"},
                                             {"keys", "generate", "--type", "dsa", "-o", "x"},
                                             {"build", "."},
                                             {"build", "-t", "UPPER", "."},
                                             {"build", "-t", "x"},
                                             {"build", "-t", "x", "--chunk-size", "3", "."},
                                             {"build", "-t", "x", "--progress", "loud", "."},
                                             {"build", "-t", "x", "--password", "p", "."},
                                             {"inspect", "oci:"}}) {
    const Ran ran = Ctl(bad);
    EXPECT_EQ(ran.code, 2) << testing::PrintToString(bad) << ran.err;
    EXPECT_EQ(ran.out, "");
    EXPECT_NE(ran.err, "");
  }
  for (const std::vector<std::string>& good :
       std::vector<std::vector<std::string>>{{"--help"},
                                             {"keys", "--help"},
                                             {"keys", "generate", "--help"},
                                             {"build", "--help"},
                                             {"inspect", "--help"},
                                             {"doctor", "--help"},
                                             {"status", "--help"},
                                             {"upgrade", "--help"}}) {
    const Ran ran = Ctl(good);
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_THAT(ran.out, HasSubstr("kapsule-ctl"));
  }
  EXPECT_THAT(Ctl({"--help"}).out, HasSubstr("Exit codes:"));
  EXPECT_THAT(Ctl({"--version"}).out, testing::StartsWith("kapsule-ctl "));
}

}  // namespace
}  // namespace kapsule::ctl
