// The kapsule-fuse process as the snapshotter sees it: started, asked, watched
// and started again. Makes the FUSE mount that its views appear in.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <memory>

#include <absl/time/time.h>

#include "core/base/file.h"
#include "core/oci/annotations.h"

namespace kapsule::snapshotter {

// Thread-safe.
class DataPlane {
 public:
  struct Options {
    std::filesystem::path views;  // the FUSE mount point; made, 0700
    std::filesystem::path program;
    uid_t uid = 0;
    gid_t gid = 0;
    std::filesystem::path keyprovider_socket;
    std::string log_level = "info";
    // Called from the watching thread: when the process has died, before its
    // FUSE mount is detached; and when a new one serves.
    std::function<void()> on_death, on_restart;
  };
  static absl::StatusOr<std::unique_ptr<DataPlane>> Start(Options options);
  // Stops the process (it exits when its control socket closes) and unmounts.
  ~DataPlane();

  // Opens a layer and returns the path of its view, a file to mount as EROFS.
  // `blob` is read-only (O_DIRECT where the file system takes it). For a plain
  // layer the annotations hold kIndexAnnotation; for an encrypted one also the
  // wrapped keys. Errors of kapsule-fuse come back with code and message:
  //   NotFound, PermissionDenied  no key for this node
  //   Unavailable                 keyprovider or kapsule-fuse is down
  //   DataLoss, InvalidArgument   the layer is bad
  absl::StatusOr<std::filesystem::path> Open(const oci::Digest& digest, uint64_t size,
                                             bool encrypted, UniqueFd blob,
                                             const oci::Annotations& annotations,
                                             absl::Time deadline);

  // Whether `annotations` unwrap to the key, nonce and root of the open layer.
  //   PermissionDenied  they do not
  absl::Status Authorise(const oci::Digest& digest, const oci::Annotations& annotations,
                         absl::Time deadline);

  absl::Status Close(const oci::Digest& digest, absl::Time deadline);

  bool serving() const;
  pid_t pid() const;  // for health and tests; -1 while there is none

 private:
  class Impl;
  explicit DataPlane(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace kapsule::snapshotter
