// One life of kapsule-fuse.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/base/file.h"

namespace kapsule::snapshotter {

// A child process, killed and reaped at the end. Not thread-safe, except for
// pid() and pidfd().
class FuseProcess {
 public:
  // The child finds `control` as kControlFd; it gets descriptors 0 to 2, no
  // other, and a session of its own, so that a terminal's signals pass it by.
  //   NotFound, PermissionDenied  the program cannot be executed
  static absl::StatusOr<std::unique_ptr<FuseProcess>> Start(const std::filesystem::path& program,
                                                            std::vector<std::string> arguments,
                                                            int control);
  static constexpr int kControlFd = 3;
  ~FuseProcess();

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }  // readable when it has ended

  // Waits for the end at most `milliseconds`; true where it has come.
  bool WaitForEnd(int milliseconds) const;
  // Kills it where it runs, and reaps it. "exit status 1", "signal 9".
  std::string End();

 private:
  FuseProcess(pid_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  const pid_t pid_;
  const UniqueFd pidfd_;
  bool reaped_ = false;
};

}  // namespace kapsule::snapshotter
