// EROFS mounts of views.
#pragma once

#include <atomic>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/status.h"

namespace kapsule {

// How a view is mounted.
//   kFile  by the file itself: Linux 6.13 or later with CONFIG_EROFS_FS_BACKED_BY_FILE;
//          opening a mounted file with O_DIRECT gives EINVAL
//   kLoop  through a loop device with direct I/O: every kernel with EROFS and loop
//          devices; O_DIRECT works
//   kAuto  by file where the kernel can, else by loop device: what is tried finds out
enum class ViewMount { kAuto, kFile, kLoop };

// "auto", "file" or "loop". InvalidArgument for another word.
absl::StatusOr<ViewMount> ParseViewMount(const std::string& word);

inline constexpr int kReadAheadKb = 2048;

// Thread-safe.
class ErofsMounter {
 public:
  explicit ErofsMounter(ViewMount way = ViewMount::kAuto) : way_(way) {}

  // Mounts the file `view` read-only at the directory `target`, with direct I/O on the
  // view, and raises its read-ahead to kReadAheadKb. A mount through a loop device
  // takes the device with it when it goes.
  //   PermissionDenied    the view is a link, no regular file, or of another file
  //                       system than its folder: its server is not trusted
  //   FailedPrecondition  this kernel cannot; says what to do
  absl::Status Mount(const std::filesystem::path& view, const std::filesystem::path& target);

  // kAuto until a mount has worked; then what worked, for all mounts that follow.
  ViewMount way() const { return way_; }

 private:
  void Settle(ViewMount way, const std::string& reason);

  std::atomic<ViewMount> way_;
};

// Unmounts `target`; while somebody reads it, detaches it. OK where nothing is
// mounted there.
absl::Status UnmountErofs(const std::filesystem::path& target);

// Whether EROFS is mounted at exactly `target`, topmost. Asks its server nothing. The
// folder of `target` may be given through /proc/self/fd.
bool IsErofsMount(const std::filesystem::path& target);

// Where EROFS is mounted below the directory `dir`, as real paths in the kernel's
// order; one that is mounted twice is there twice.
absl::StatusOr<std::vector<std::string>> ErofsMountsBelow(const std::filesystem::path& dir);

// Detaches every EROFS mounted below the directory `dir`.
absl::Status DetachErofsBelow(const std::filesystem::path& dir);

// Detaches loop devices of views in the folder `views` that a killed process left.
// Those that are mounted stay until they are unmounted.
absl::Status DetachLoopsOfViews(const std::filesystem::path& views);

}  // namespace kapsule
