// For tests: a node that is well, as MetricSources.
#pragma once

#include <unistd.h>

#include "snapshotter/metrics.h"

namespace kapsule::snapshotter {

inline DataPlaneStatus WellPlane() {
  DataPlaneStatus plane;
  plane.pid = getpid();
  plane.serving = plane.failover = true;
  plane.views = 3;
  plane.takeovers = 2;
  plane.last_stall = absl::Milliseconds(30);
  return plane;
}

inline MetricSources WellNode() {
  return {.data_plane = WellPlane,
          .layers =
              [] {
                return std::map<std::string, size_t>{
                    {"mounted", 3}, {"opening", 0}, {"waiting", 1}, {"failed", 0}};
              },
          .fetch = [](absl::Time) -> absl::StatusOr<v1::FetchStats> {
            v1::FetchStats stats;
            stats.set_bytes_fetched(1000);
            stats.set_wanted_there(7);
            stats.set_wanted_fetched(5);
            return stats;
          },
          .fetch_pid = [] { return getpid(); },
          .snapshots =
              [] {
                return std::map<Kind, size_t>{{Kind::kActive, 4}, {Kind::kCommitted, 9}};
              },
          .write_metadata = [] { return absl::OkStatus(); }};
}

}  // namespace kapsule::snapshotter
