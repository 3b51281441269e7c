// EROFS mounts of views.
#pragma once

#include <filesystem>

#include "core/base/status.h"

namespace kapsule::snapshotter {

inline constexpr int kReadAheadKb = 2048;

// Mounts the file `view` read-only at the directory `target`, file-backed, with
// direct I/O on the view, and raises its read-ahead to kReadAheadKb. Thread-safe.
//   PermissionDenied    the view is a link, no regular file, or of another file
//                       system than its folder: its server is not trusted
//   FailedPrecondition  this kernel has no file-backed EROFS (6.13 or later)
absl::Status MountErofs(const std::filesystem::path& view, const std::filesystem::path& target);

// Unmounts `target`; while somebody reads it, detaches it. OK where nothing is
// mounted there.
absl::Status UnmountErofs(const std::filesystem::path& target);

// Detaches every EROFS mounted below the directory `dir`.
absl::Status DetachErofsBelow(const std::filesystem::path& dir);

}  // namespace kapsule::snapshotter
