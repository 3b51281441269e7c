#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "snapshotter/test_sources.h"

namespace kapsule::snapshotter {
namespace {

using testing::HasSubstr;

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);

TEST(HealthTest, AWellNodeSaysWhatWorks) {
  Health health;
  const Health::Report report = health.Check(WellNode(), kStart);
  EXPECT_TRUE(report.well);
  EXPECT_EQ(report.text, "ok data plane\nok failover\nok fetcher\nok metadata\n");
}

TEST(HealthTest, EveryThingThatDoesNotWorkIsSaid) {
  MetricSources sources = WellNode();
  sources.data_plane = [] { return DataPlaneStatus(); };
  sources.fetch = [](absl::Time) { return Unavailable("kapsule-fetch is not running"); };
  sources.write_metadata = [] { return ResourceExhausted("metadata.db: the disk\nis full"); };
  Health health;
  const Health::Report report = health.Check(sources, kStart);
  EXPECT_FALSE(report.well);
  EXPECT_THAT(report.text, HasSubstr("bad data plane: kapsule-fuse does not serve\n"));
  EXPECT_THAT(report.text, HasSubstr("bad failover: "));
  EXPECT_THAT(report.text, HasSubstr("bad fetcher: kapsule-fetch is not running\n"));
  EXPECT_THAT(report.text, HasSubstr("bad metadata: metadata.db: the disk?is full\n"));
}

TEST(HealthTest, WhoAsksOftenDoesNotWriteOften) {
  MetricSources sources = WellNode();
  int writes = 0;
  sources.write_metadata = [&] { return ++writes == 1 ? DataLoss("bad disk") : absl::OkStatus(); };
  Health health;
  for (int i = 0; i < 10; ++i)
    EXPECT_FALSE(health.Check(sources, kStart + absl::Milliseconds(i)).well);
  EXPECT_EQ(writes, 1);
  EXPECT_TRUE(health.Check(sources, kStart + absl::Seconds(5)).well);
  EXPECT_EQ(writes, 2);
}

TEST(HealthTest, NobodyElseWaitsForAWriteThatHangs) {
  MetricSources sources = WellNode();
  absl::Notification begun, end;
  sources.write_metadata = [&] {
    begun.Notify();
    end.WaitForNotification();
    return absl::OkStatus();
  };
  Health health;
  std::thread first([&] { EXPECT_TRUE(health.Check(sources, kStart).well); });
  begun.WaitForNotification();
  EXPECT_TRUE(health.Check(sources, kStart + absl::Seconds(1)).well);
  EXPECT_THAT(health.Check(sources, kStart + absl::Seconds(7)).text,
              HasSubstr("bad metadata: a write has not ended for 7 s\n"));
  end.Notify();
  first.join();
}

}  // namespace
}  // namespace kapsule::snapshotter
