// The kapsule-fuse process as the snapshotter sees it: started, asked, watched,
// succeeded by another and upgraded. Makes the FUSE mount that its views appear in,
// and starts kapsule-holder, which keeps what a successor needs.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <absl/time/time.h>

#include "core/base/file.h"
#include "core/oci/annotations.h"
#include "snapshotter/data_plane_status.h"

namespace kapsule::snapshotter {

class FuseSupervisor;

// Thread-safe.
class DataPlane {
 public:
  struct Options {
    std::filesystem::path views;  // the FUSE mount point; made, 0700
    std::filesystem::path program;
    std::filesystem::path holder_program;
    std::filesystem::path holder_socket;
    uid_t uid = 0;
    gid_t gid = 0;
    std::filesystem::path keyprovider_socket;
    std::string log_level = "info";
    // Further flags of kapsule-fuse.
    std::vector<std::string> flags = {};
    // What the service manager kept for the holder (sd_listen_fds(3)); closed by
    // Start().
    std::vector<int> stored_fds = {};
    // How long an upgrade waits for the keys of all views.
    absl::Duration prepare_timeout = absl::Seconds(30);
    // How long successors are tried where each of them fails, before the connection
    // is given up: all its readers then have I/O errors.
    absl::Duration give_up_after = absl::Minutes(2);
    // After so long a kapsule-fuse that runs, but does nothing of what is asked of it
    // (FuseLifeWatch), is killed and succeeded. Infinite: never, as for debugging.
    absl::Duration stuck_after = absl::Seconds(10);
    // After so long without this process and kapsule-fuse, a holder that is started from
    // now on gives the connection up: what reads has I/O errors then. Infinite: never.
    absl::Duration abandon_after = absl::Minutes(10);
    // How long after Start() calls of an earlier run may still be under way.
    absl::Duration settle_after = absl::Minutes(1);
    // Called from the watching thread, and on_death also by Start(). on_death: before
    // a new FUSE connection is made, whose views are other files than those of
    // earlier ones; nothing of those may stay mounted. on_restart: the new one is
    // served. on_takeover: a successor serves the same views, except those that it
    // lost, which are no longer open.
    std::function<void()> on_death = {}, on_restart = {}, on_takeover = {};
    // From the same thread, once after Start() went on with an earlier run: the hex
    // digests of the views when all calls of that run have ended.
    std::function<void(const std::vector<std::string>&)> on_settled = {};
  };
  // Goes on with what an earlier run left (Leave()), where that still works: its
  // FUSE connection, and its kapsule-fuse, or else a successor. A program that is not
  // the one on disk any more, or runs with other flags, is upgraded in the
  // background. What does not work is removed, and all begins anew.
  static absl::StatusOr<std::unique_ptr<DataPlane>> Start(Options options);
  // Stops, except after Leave().
  ~DataPlane();

  // Ends kapsule-fuse, the holder and the FUSE connection, so that nothing waits
  // for an answer any more: EROFS on it can be unmounted. Calls then fail.
  void Stop();

  // From now on the end of this object leaves all as it is, for the next Start().
  void Leave();

  // Where Start() went on with an earlier run: the hex digests of its views.
  const std::optional<std::vector<std::string>>& adopted() const;

  // Opens a layer and returns the path of its view, a file to mount as EROFS.
  // `blob` is read-only (O_DIRECT where the file system takes it); `remote`: it is
  // kapsule-fetch's file of it, whose blocks come as they are read. For a plain
  // layer the annotations hold kIndexAnnotation; for an encrypted one also the
  // wrapped keys. Opening an open layer compares the keys. Waits while a successor
  // takes over. Errors of kapsule-fuse come back with code and message:
  //   NotFound, PermissionDenied  no key for this node
  //   Unavailable                 keyprovider or kapsule-fuse is down
  //   DataLoss, InvalidArgument   the layer is bad
  absl::StatusOr<std::filesystem::path> Open(const oci::Digest& digest, uint64_t size,
                                             bool encrypted, UniqueFd blob,
                                             const oci::Annotations& annotations,
                                             absl::Time deadline, bool remote = false);

  // Has remote blobs asked for through `socket`, the data socket of kapsule-fetch:
  // by successors too, but not where a new FUSE connection is made (on_restart). Where
  // it has another file of an open layer, reads wait for UseFile().
  absl::Status UseFetcher(const UniqueFd& socket, absl::Time deadline);
  // `blob`, read-only, is the file of an open remote layer that this kapsule-fetch has,
  // and the layer is read from: also for successors. Nothing for layers that are not remote.
  //   NotFound     the layer is not open, yet
  //   Unavailable  its key has not come back yet: try again
  absl::Status UseFile(const oci::Digest& digest, const UniqueFd& blob, absl::Time deadline);
  // All of a blob that was opened as remote is in the file `blob` now, read-only: it is
  // read there from now on. Nothing for layers that are not remote.
  //   NotFound     the layer is not open
  //   Unavailable  not yet, or not for successors: try again
  absl::Status UseLocal(const oci::Digest& digest, const UniqueFd& blob, absl::Time deadline);

  // Whether `annotations` unwrap to the key, nonce and root of the open layer.
  //   PermissionDenied  they do not
  absl::Status Authorise(const oci::Digest& digest, const oci::Annotations& annotations,
                         absl::Time deadline);

  absl::Status Close(const oci::Digest& digest, absl::Time deadline);

  // Puts a new process, of the program on disk, in the place of the one that serves;
  // readers only wait for a moment. Where the new one does not get ready, with the
  // keys of all views, the old one serves on.
  //   FailedPrecondition  failover is off, or keys are missing
  //   Aborted             another upgrade is under way
  //   others              why the new one did not get ready or did not serve
  absl::Status Upgrade();

  DataPlaneStatus status() const;
  bool serving() const;
  bool failover() const;  // as in status(), without asking the holder
  pid_t pid() const;      // -1 while there is none

 private:
  DataPlane(std::unique_ptr<FuseSupervisor> supervisor, std::filesystem::path views);
  const std::unique_ptr<FuseSupervisor> supervisor_;
  const std::filesystem::path views_;
};

}  // namespace kapsule::snapshotter
