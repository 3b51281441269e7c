// One life of kapsule-fuse: its process and the channel to it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "snapshotter/control_channel.h"
#include "snapshotter/data_plane.h"
#include "snapshotter/fuse_connection.h"

namespace kapsule::snapshotter {

// Killed at the end, except after Leave(). Not thread-safe, except for channel().
class FuseLife {
 public:
  // `on_end` as in ControlChannel.
  static absl::StatusOr<std::unique_ptr<FuseLife>> Start(const DataPlane::Options& options,
                                                         const FuseConnection& connection,
                                                         std::function<void()> on_end);
  // The process that an earlier run left.
  //   FailedPrecondition  it has ended, or nobody can talk to it: then it is killed
  static absl::StatusOr<std::unique_ptr<FuseLife>> Adopt(FuseConnection::Server server,
                                                         std::function<void()> on_end);
  ~FuseLife() { End(); }

  // Gets ready to succeed the process that serves.
  //   FailedPrecondition  the keys of some views did not come within `timeout`
  absl::Status Prepare(absl::Duration timeout) const;
  // Serves the connection, as the only process: an earlier one has ended. From
  // now on the holder knows this one.
  absl::Status Serve(const FuseConnection& connection) const;

  // Kills it and waits; says how it ended.
  std::string End();
  void Leave();

  // Whether it was started from the program on disk with these options.
  bool IsCurrent(const DataPlane::Options& options) const;

  pid_t pid() const { return process_->pid(); }
  int pidfd() const { return process_->pidfd(); }
  const std::shared_ptr<ControlChannel>& channel() const { return channel_; }

 private:
  FuseLife(std::unique_ptr<DaemonProcess> process, UniqueFd control, std::function<void()> on_end,
           bool may_serve)
      : may_serve_(may_serve),
        process_(std::move(process)),
        channel_(std::make_shared<ControlChannel>(std::move(control), std::move(on_end))) {}

  const bool may_serve_;  // already
  const std::unique_ptr<DaemonProcess> process_;
  const std::shared_ptr<ControlChannel> channel_;
};

}  // namespace kapsule::snapshotter
