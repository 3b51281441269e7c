#include "snapshotter/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "core/base/file.h"
#include "core/base/json.h"
#include "snapshotter/test_sources.h"

namespace kapsule::snapshotter {
namespace {

using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;

// After something of everything has happened.
std::string FullText() {
  Metrics metrics;
  metrics.layer_events().opened(absl::OkStatus(), absl::Milliseconds(70));
  metrics.layer_events().opened(PermissionDenied("no key"), absl::Seconds(1));
  metrics.layer_events().refused(PermissionDenied("no"));
  metrics.rpc_ended()("Snapshots/Prepare", grpc::StatusCode::ALREADY_EXISTS, absl::Seconds(2));
  return metrics.Text(WellNode());
}

// Names of samples: those of a histogram with _bucket, _sum and _count.
std::set<std::string> NamesIn(const std::string& text) {
  std::set<std::string> names;
  const std::regex sample("(^|\\n)(kapsule_[a-z_]+)[ {]");
  for (std::sregex_iterator it(text.begin(), text.end(), sample), end; it != end; ++it)
    names.insert((*it)[2]);
  return names;
}

// Names of metrics, a histogram's once.
std::set<std::string> FamiliesIn(const std::string& text) {
  std::set<std::string> names;
  const std::regex type("# TYPE (kapsule_[a-z_]+) ");
  for (std::sregex_iterator it(text.begin(), text.end(), type), end; it != end; ++it)
    names.insert((*it)[1]);
  return names;
}

std::string ProjectFile(const std::string& name) {
  const auto text = ReadFile(std::string(PROJECT_SOURCE_DIR "/") + name, 1 << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

TEST(MetricsTest, EventsAndTheMomentAreTold) {
  const std::string text = FullText();
  for (const char* line : {"kapsule_layers{state=\"mounted\"} 3\n",
                           "kapsule_layers{state=\"failed\"} 0\n",
                           "kapsule_layer_open_seconds_bucket{le=\"0.05\"} 0\n",
                           "kapsule_layer_open_seconds_bucket{le=\"0.1\"} 1\n",
                           "kapsule_layer_open_seconds_count 1\n",
                           "kapsule_layer_open_failures_total{code=\"PERMISSION_DENIED\"} 1\n",
                           "kapsule_authorisations_refused_total 1\n",
                           "kapsule_data_plane_serving 1\n",
                           "kapsule_data_plane_failover 1\n",
                           "kapsule_data_plane_views 3\n",
                           "kapsule_data_plane_takeovers_total 2\n",
                           "kapsule_data_plane_last_stall_seconds 0.03\n",
                           "kapsule_fetch_up 1\n",
                           "kapsule_fetch_bytes_total 1000\n",
                           "kapsule_fetch_wanted_blocks_total{from=\"cache\"} 7\n",
                           "kapsule_fetch_wanted_blocks_total{from=\"registry\"} 5\n",
                           "kapsule_snapshots{kind=\"active\"} 4\n",
                           "kapsule_snapshots{kind=\"view\"} 0\n",
                           "kapsule_rpc_seconds_count{method=\"Snapshots/Prepare\"} 1\n",
                           "kapsule_build_info{version=\"" KAPSULE_VERSION "\"} 1\n"})
    EXPECT_THAT(text, HasSubstr(line));
  EXPECT_THAT(text, ContainsRegex("kapsule_rpcs_total\\{.*code=\"ALREADY_EXISTS\".*\\} 1\n"));
  EXPECT_THAT(text, ContainsRegex("kapsule_process_resident_memory_bytes\\{program=\"kapsule-fuse\""
                                  "\\} [1-9]"));
}

TEST(MetricsTest, WhatIsAwayIsMissingAndTheRestIsThere) {
  MetricSources sources = WellNode();
  sources.data_plane = [] { return DataPlaneStatus(); };
  sources.fetch = [](absl::Time) { return Unavailable("gone"); };
  sources.fetch_pid = [] { return -1; };
  sources.snapshots = []() -> absl::StatusOr<std::map<Kind, size_t>> { return DataLoss("bad"); };
  const std::string text = Metrics().Text(sources);
  EXPECT_THAT(text, HasSubstr("kapsule_data_plane_serving 0\n"));
  EXPECT_THAT(text, HasSubstr("kapsule_fetch_up 0\n"));
  EXPECT_THAT(text, HasSubstr("kapsule_authorisations_refused_total 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("kapsule_fetch_bytes_total")));
  EXPECT_THAT(text, Not(HasSubstr("kapsule_snapshots")));
  EXPECT_THAT(text, Not(HasSubstr("program=\"kapsule-fuse\"")));
  EXPECT_THAT(text, HasSubstr("program=\"kapsule-snapshotter\""));
}

TEST(MetricsTest, EveryMetricIsDocumentedAndNothingElseIs) {
  std::set<std::string> documented;
  const std::string page = ProjectFile("docs/metrics.md");
  const std::regex name("\\| `(kapsule_[a-z_]+)");
  for (std::sregex_iterator it(page.begin(), page.end(), name), end; it != end; ++it)
    documented.insert((*it)[1]);
  EXPECT_EQ(documented, FamiliesIn(FullText()));
}

TEST(MetricsTest, TheDashboardAndTheAlertsAskForMetricsThatThereAre) {
  const std::set<std::string> there = NamesIn(FullText());
  const std::regex name("kapsule_[a-z_]+");
  for (const char* file : {"configs/grafana/kapsule.json", "docs/metrics.md"}) {
    const std::string text = ProjectFile(file);
    const std::set<std::string> families = FamiliesIn(FullText());
    int asked = 0;
    for (std::sregex_iterator it(text.begin(), text.end(), name), end; it != end; ++it, ++asked)
      EXPECT_TRUE(there.contains(it->str()) || families.contains(it->str()))
          << file << ": " << it->str();
    EXPECT_GT(asked, 10) << file;
  }
  EXPECT_TRUE(ParseJson(ProjectFile("configs/grafana/kapsule.json"), 1 << 20).ok());
}

}  // namespace
}  // namespace kapsule::snapshotter
