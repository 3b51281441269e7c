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
  FuseMount(FuseMount&& other) noexcept = default;
  FuseMount& operator=(FuseMount&&) = delete;
  ~FuseMount();

  // /dev/fuse, for whoever serves. It has to be the only descriptor in the end:
  // the kernel fails the readers of a mount when the last one closes.
  UniqueFd TakeDevice() { return std::move(device_); }

  // Read-ahead and the number of requests under way, once INIT has been
  // answered. Best effort: says in the log what could not be set.
  void Tune() const;

 private:
  FuseMount(std::filesystem::path path, UniqueFd device)
      : path_(std::move(path)), device_(std::move(device)) {}
  std::filesystem::path path_;  // empty once moved from
  UniqueFd device_;
};

}  // namespace kapsule::snapshotter
