// The mount that shows a snapshot: what containerd's overlayfs snapshotter
// answers, so that containerd and runtimes find nothing new.
#pragma once

#include <set>
#include <string_view>
#include <vector>

#include "core/base/status.h"
#include "snapshotter/snapshot.h"
#include "snapshotter/snapshot_dirs.h"

namespace kapsule::snapshotter {

// The longest option string of one mount, counted as containerd passes it to
// the kernel, which takes a page of 4,096 bytes.
inline constexpr size_t kMaxMountOptions = 4000;

// What overlayfs takes (OVL_MAX_STACK of Linux).
inline constexpr size_t kMaxLowerDirs = 500;
absl::Status TooManyLayers(std::string_view what, size_t layers);

// Snapshot `id` on `parents` (top to bottom), those in `linked` by way of its link; on
// an empty directory where there is none and `over_nothing`: whiteouts need an overlay.
// Read-only mounts have no upper directory, so that nothing is ever copied up from
// below.
//   FailedPrecondition  too many layers for one mount
absl::StatusOr<Mount> SnapshotMount(const SnapshotDirs& dirs, int64_t id, bool writable,
                                    const std::vector<int64_t>& parents,
                                    const std::set<int64_t>& linked = {},
                                    bool over_nothing = false);

}  // namespace kapsule::snapshotter
