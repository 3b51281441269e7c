// The user namespace that a container's files are for.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "core/base/status.h"
#include "snapshotter/snapshot.h"

namespace kapsule::snapshotter {

// As containerd gives them to a snapshot: "<in the container>:<on the host>:<how
// many>,…".
struct IdMaps {
  std::string uids, gids;
  // On the host, who is root of the container.
  uid_t root_uid = 0;
  gid_t root_gid = 0;

  // None where there are no such labels.
  //   InvalidArgument  they make no sense
  static absl::StatusOr<std::optional<IdMaps>> FromLabels(const Labels& labels);
};

}  // namespace kapsule::snapshotter
