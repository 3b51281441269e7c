// The FUSE mount that views appear in.
#pragma once

#include <filesystem>

#include "core/base/file.h"

namespace kapsule::snapshotter {

// Detaches every FUSE mount at `path`, also dead ones; other mounts stay.
absl::Status DetachFuseMounts(const std::filesystem::path& path);

// One mount of type fuse.kapsule; detached at the end, which stops no reader.
class FuseMount {
 public:
  // `path` is an existing directory, absolute and without symbolic links. Needs
  // CAP_SYS_ADMIN.
  static absl::StatusOr<FuseMount> Make(const std::filesystem::path& path);
  // One that an earlier run left at `path`; without its device.
  //   NotFound  nothing or something else is mounted there, or several
  static absl::StatusOr<FuseMount> Adopt(const std::filesystem::path& path);
  FuseMount(FuseMount&& other) noexcept = default;
  FuseMount& operator=(FuseMount&&) = delete;
  ~FuseMount();

  // From now on it is not detached at the end.
  void Leave() { path_.clear(); }

  // /dev/fuse, for whoever serves. The kernel fails the readers of the mount when
  // the last descriptor closes.
  UniqueFd TakeDevice() { return std::move(device_); }

  // Read-ahead and the number of requests under way, once INIT has been
  // answered. Best effort: says in the log what could not be set.
  void Tune() const;

  // How many requests of the kernel are not answered yet. Says nothing to the mount.
  //   NotFound  it cannot be told: /sys/fs/fuse/connections is not mounted
  absl::StatusOr<int> Unanswered() const;

 private:
  FuseMount(std::filesystem::path path, UniqueFd device)
      : path_(std::move(path)), device_(std::move(device)) {}
  std::filesystem::path path_;  // empty: nothing to detach
  UniqueFd device_;
};

}  // namespace kapsule::snapshotter
