#include "snapshotter/id_maps.h"

#include <gtest/gtest.h>

namespace kapsule::snapshotter {
namespace {

Labels Of(const std::string& uids, const std::string& gids) {
  return {{"containerd.io/snapshot/uidmapping", uids}, {"containerd.io/snapshot/gidmapping", gids}};
}

TEST(IdMapsTest, RootOnTheHostIsFound) {
  const auto maps = IdMaps::FromLabels(Of("1:7:9,0:65536:1", "0:131072:65536"));
  ASSERT_TRUE(maps.ok() && maps->has_value()) << maps.status();
  EXPECT_EQ((*maps)->uids, "1:7:9,0:65536:1");
  EXPECT_EQ((*maps)->gids, "0:131072:65536");
  EXPECT_EQ((*maps)->root_uid, 65536u);
  EXPECT_EQ((*maps)->root_gid, 131072u);
}

TEST(IdMapsTest, MostContainersHaveNone) {
  const auto maps = IdMaps::FromLabels({{"containerd.io/snapshot.ref", "x"}});
  ASSERT_TRUE(maps.ok());
  EXPECT_FALSE(maps->has_value());
}

TEST(IdMapsTest, NonsenseIsRefused) {
  const std::string good = "0:65536:65536";
  for (const char* bad : {"", ",", "0", "0:1", "0:1:0", "0:1:2:3", "a:1:2", "0:-1:2", "1:65536:9",
                          "0:1:4294967296", "0:1:2,", "0:1:2,lowerdir=/etc"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(IdMaps::FromLabels(Of(bad, good)).status())) << bad;
    EXPECT_TRUE(absl::IsInvalidArgument(IdMaps::FromLabels(Of(good, bad)).status())) << bad;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(
      IdMaps::FromLabels({{"containerd.io/snapshot/uidmapping", good}}).status()));
}

}  // namespace
}  // namespace kapsule::snapshotter
