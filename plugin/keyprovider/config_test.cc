#include "plugin/keyprovider/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "core/base/file.h"

namespace kapsule::keyprovider {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ConfigTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_.data()), nullptr); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(folder_).ok()); }
  absl::StatusOr<Config> Load(const std::string& text) {
    EXPECT_TRUE(WriteFileAtomic(folder_ + "/c.toml", AsBytes(text), 0600).ok());
    return LoadConfig(folder_ + "/c.toml");
  }
  std::string folder_ = "/tmp/kapsule-config-XXXXXX";
};

TEST_F(ConfigTest, EveryKeyIsRead) {
  const Config config = Load(R"(
    keys = "/etc/kapsule/keys"  # PEM
    address = "/run/a"
    grpc-address = "/run/b"
    allow-uid = ["kapsule-fuse",
                 1000]
    log-level = "debug")")
                            .value();
  EXPECT_EQ(config.keys, "/etc/kapsule/keys");
  EXPECT_EQ(config.address, "/run/a");
  EXPECT_EQ(config.grpc_address, "/run/b");
  EXPECT_THAT(config.allow_uid, ElementsAre("kapsule-fuse", "1000"));
  EXPECT_EQ(config.log_level, "debug");
}

TEST_F(ConfigTest, NobodyIsAllowedByDefault) {
  const Config config = Load("").value();
  EXPECT_TRUE(config.allow_uid.empty());
  EXPECT_EQ(config.address, "/run/kapsule-keys/keys.sock");
  EXPECT_THAT(Load("allow-uid = 7").value().allow_uid, ElementsAre("7"));
}

TEST_F(ConfigTest, ErrorsNameFileAndLine) {
  for (const char* bad : {"\nkey = 1", "\nkeys = 1", "\nallow-uid = [true]", "\nallow-uid = 1.5",
                          "\nkeys =", "\naddress = [\"/a\"]", "\n[keys]", "\nlog-level = {}"}) {
    const absl::Status status = Load(bad).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad << status;
    EXPECT_THAT(Message(status), HasSubstr("c.toml:2")) << bad;
  }
  EXPECT_TRUE(absl::IsNotFound(LoadConfig(folder_ + "/none").status()));
}

}  // namespace
}  // namespace kapsule::keyprovider
