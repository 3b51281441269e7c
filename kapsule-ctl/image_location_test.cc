#include "kapsule-ctl/image_location.h"

#include <gtest/gtest.h>

namespace kapsule::ctl {
namespace {

TEST(ImageLocationTest, ReadsLayoutsAsSkopeoDoes) {
  const auto tagged = ImageLocation::Parse("oci:/a/b:enc");
  ASSERT_TRUE(tagged.ok()) << tagged.status();
  EXPECT_EQ(tagged->layout, "/a/b");
  EXPECT_EQ(tagged->tag, "enc");
  EXPECT_EQ(ImageLocation::Parse("oci:dir/")->layout, "dir/");
  EXPECT_EQ(ImageLocation::Parse("oci:dir")->tag, "");
  EXPECT_EQ(ImageLocation::Parse("oci:dir:a:b")->tag, "a:b");
}

TEST(ImageLocationTest, EverythingElseIsARegistrysName) {
  const auto location = ImageLocation::Parse("127.0.0.1:5000/acme/tiny:enc");
  ASSERT_TRUE(location.ok()) << location.status();
  EXPECT_TRUE(location->layout.empty());
  EXPECT_EQ(location->reference.host, "127.0.0.1:5000");
  EXPECT_EQ(location->reference.tag, "enc");
}

TEST(ImageLocationTest, ChecksSayWhatIsWrong) {
  EXPECT_EQ(CheckImageLocation("oci:dir:x"), "");
  EXPECT_EQ(CheckImageName("acme/tiny"), "");
  EXPECT_NE(CheckImageName("oci:dir/x"), "");
  for (const char* bad : {"", "oci:", "oci::x", "a b", "UPPER", "x:"})
    EXPECT_NE(CheckImageLocation(bad), "") << bad;
}

}  // namespace
}  // namespace kapsule::ctl
