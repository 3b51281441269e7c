#include "kapsule-ctl/units.h"

#include <gtest/gtest.h>

namespace kapsule::ctl {
namespace {

TEST(UnitsTest, BytesInTheLargestUnitThatLeavesAWholeNumber) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.0 KiB");
  EXPECT_EQ(FormatBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(FormatBytes(1610612736), "1.5 GiB");
  EXPECT_EQ(FormatBytes(UINT64_MAX), "16.0 EiB");
}

TEST(UnitsTest, SecondsAsPeopleSayThem) {
  EXPECT_EQ(FormatSeconds(59), "59s");
  EXPECT_EQ(FormatSeconds(60), "1m00s");
  EXPECT_EQ(FormatSeconds(3599), "59m59s");
  EXPECT_EQ(FormatSeconds(7500), "2h05m");
}

TEST(UnitsTest, ChunkSizesArePowersOfTwoFrom4KiBTo1MiB) {
  EXPECT_EQ(*ParseChunkSize("64KiB"), 65536u);
  EXPECT_EQ(*ParseChunkSize("16KiB"), 16384u);
  EXPECT_EQ(*ParseChunkSize("4096"), 4096u);
  EXPECT_EQ(*ParseChunkSize("1MiB"), 1u << 20);
  for (const char* bad : {"", "KiB", "2KiB", "2MiB", "65KiB", "64kb", "64 KiB", "-4096", "4097",
                          "99999999999", "4294967296KiB", "64KiBs"})
    EXPECT_FALSE(ParseChunkSize(bad).ok()) << bad;
}

}  // namespace
}  // namespace kapsule::ctl
