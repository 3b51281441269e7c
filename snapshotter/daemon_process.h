// A program that the snapshotter starts, and that may outlive it.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/file.h"

namespace kapsule::snapshotter {

// Killed at the end, except after Leave(). Not thread-safe, except for pid() and
// pidfd().
class DaemonProcess {
 public:
  static constexpr int kFirstFd = 3;

  // The child finds `fds` as descriptors kFirstFd, kFirstFd + 1, …; it gets 0 to 2,
  // no other, and a session of its own, so that a terminal's signals pass it by.
  //   NotFound, PermissionDenied  the program cannot be executed
  static absl::StatusOr<std::unique_ptr<DaemonProcess>> Start(const std::filesystem::path& program,
                                                              std::vector<std::string> arguments,
                                                              const std::vector<int>& fds);

  // One that somebody else started, running or not.
  //   InvalidArgument  not a pidfd
  static absl::StatusOr<std::unique_ptr<DaemonProcess>> Adopt(UniqueFd pidfd);
  // By its number, which may be another's by now: `program` must be what it runs, by
  // the first 15 bytes of the file's name.
  //   NotFound  it has ended, or runs something else
  static absl::StatusOr<std::unique_ptr<DaemonProcess>> Find(pid_t pid, std::string_view program);
  ~DaemonProcess();

  pid_t pid() const { return pid_; }          // -1: adopted, and it had ended by then
  int pidfd() const { return pidfd_.get(); }  // readable when it has ended

  // Waits for the end at most `milliseconds`; true where it has come.
  bool WaitForEnd(int milliseconds) const;
  // Kills it where it runs, waits for its end and reaps it. "exit status 1",
  // "signal 9"; of another's child "ended".
  std::string End();
  // Lets it run.
  void Leave() { ended_ = true; }

  // Whether it runs `program` as that is on disk, with these arguments.
  bool Runs(const std::filesystem::path& program, const std::vector<std::string>& arguments) const;

 private:
  DaemonProcess(pid_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  const pid_t pid_;
  const UniqueFd pidfd_;
  bool ended_ = false;
};

}  // namespace kapsule::snapshotter
