// The FUSE connection: what stays while processes of kapsule-fuse, and of the
// snapshotter, come and go.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <absl/time/time.h>

#include "core/control/holder_wire.h"
#include "snapshotter/daemon_process.h"
#include "snapshotter/fuse_mount.h"

namespace kapsule::snapshotter {

// A FUSE mount, and kapsule-holder with its device, the requests in flight, the
// views, and the process that serves. One connection has one mount and one holder.
// Thread-safe, except that one thread calls End(), Leave() and Tune().
class FuseConnection {
 public:
  struct Options {
    std::filesystem::path views;  // the mount point, absolute and without links
    std::filesystem::path holder_program;
    std::filesystem::path holder_socket;
    uid_t uid = 0;  // of the holder and of kapsule-fuse
    gid_t gid = 0;
    std::string log_level = "info";
    absl::Duration patience = absl::Seconds(5);  // with the holder, for one answer
    // Of a holder that neither we nor kapsule-fuse are connected to. Infinite: never ends.
    absl::Duration abandon_after = absl::Minutes(10);
  };

  // A new mount, which must be the only one, and a new holder.
  static absl::StatusOr<std::unique_ptr<FuseConnection>> Make(const Options& options);
  // What an earlier run left; its holder too, or else the service manager has kept
  // the holder's descriptors and gave us `stored` (sd_listen_fds(3)), which a new
  // holder gets. A holder that does not answer is asked a few times. Where it cannot
  // be used any more, holder and kapsule-fuse are ended.
  //   NotFound            there is none
  //   FailedPrecondition  it could not be used
  static absl::StatusOr<std::unique_ptr<FuseConnection>> Adopt(const Options& options,
                                                               const std::vector<int>& stored);
  ~FuseConnection() { End(); }

  // Ends the holder, also one that hangs, and detaches the mount; the last thing to
  // call.
  void End();
  // In place of End(): leaves both as they are.
  void Leave();

  // Whether a process that is started now could serve: the holder runs, and the
  // kernel has not ended the connection.
  bool usable() const;
  // Readable when the holder has ended.
  int holder_fd() const { return holder_.connection(); }
  // A connection to the holder, for a process to be passed on to.
  absl::StatusOr<UniqueFd> ConnectToHolder() const;

  // Before the process is asked to serve: whoever comes next then finds it.
  absl::Status Remember(const DaemonProcess& process, int control) const;
  // What was remembered last. As Views(), this asks a few times.
  struct Server {
    std::unique_ptr<DaemonProcess> process;
    UniqueFd control;  // invalid where it was not remembered
  };
  //   NotFound, InvalidArgument  there is none
  //   Unavailable                the holder does not answer
  absl::StatusOr<Server> Remembered() const;

  // Hex digests of the views that are held, sorted.
  absl::StatusOr<std::vector<std::string>> Views() const;

  // Whether requests of the kernel lie there that nobody has taken, while there are
  // not so many under way that a kapsule-fuse which is well might leave them.
  //   Unavailable  the holder does not answer
  absl::StatusOr<bool> RequestsLie() const;

  // FuseMount::Tune().
  void Tune() const { mount_->Tune(); }

 private:
  FuseConnection(Options options, std::unique_ptr<DaemonProcess> process, UniqueFd holder,
                 FuseMount mount)
      : options_(std::move(options)),
        process_(std::move(process)),
        holder_(std::move(holder), options_.patience),
        mount_(std::move(mount)) {}

  const Options options_;
  std::unique_ptr<DaemonProcess> process_;  // of the holder; null where it is not known
  const control::Holder holder_;
  std::optional<FuseMount> mount_;  // none after the end
};

}  // namespace kapsule::snapshotter
