// How the data plane is.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include <absl/time/time.h>

namespace kapsule::snapshotter {

struct DataPlaneStatus {
  pid_t pid = -1;          // of kapsule-fuse; -1 while there is none
  bool serving = false;    // it answers requests
  bool failover = false;   // a successor could take over
  size_t views = 0;        // that it has, also those that only wait for their last reader
  uint64_t takeovers = 0;  // by successors, upgrades too, since kapsule-snapshotter started
  // Of the last one: from when the end of the old process was seen until the new one served.
  absl::Duration last_stall;
  std::string view_mount;  // how views are mounted; empty from DataPlane
};

}  // namespace kapsule::snapshotter
