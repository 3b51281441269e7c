// What kapsule-holder is asked: to keep descriptors by name while the processes
// that use them come and go. One request a SOCK_SEQPACKET packet; its last
// descriptor is a socket that the answer is written to, so that threads and
// processes share a connection without a lock.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <absl/time/time.h>

#include "core/base/file.h"

namespace kapsule::control {

// Names that the programs agree on.
inline constexpr std::string_view kHeldFuse = "fuse";          // /dev/fuse, mounted
inline constexpr std::string_view kHeldRequests = "requests";  // memfd: requests in flight
inline constexpr std::string_view kHeldControl = "control";    // the snapshotter's end
inline constexpr std::string_view kHeldProcess = "process";    // pidfd of kapsule-fuse
inline constexpr std::string_view kHeldFetch = "fetch";        // socket to kapsule-fetch
// "view/<64 hex digits>": image memfd, record memfd (control_wire.h), blob.
inline constexpr std::string_view kHeldViewPrefix = "view/";

inline constexpr size_t kMaxHeldName = 80;
inline constexpr size_t kMaxHeldFds = 3;  // under one name
inline constexpr size_t kMaxHeldNames = 8192;

// The client's end. Thread-safe; a call waits for the answer, at most `patience`.
//   Unavailable  the holder is gone, or hangs
class Holder {
 public:
  explicit Holder(UniqueFd connection, absl::Duration patience = absl::Seconds(5))
      : connection_(std::move(connection)), patience_(patience) {}

  // Keeps duplicates of `fds`, in place of what had the name before.
  //   InvalidArgument    name or number of descriptors
  //   ResourceExhausted  the holder is full
  absl::Status Put(std::string_view name, const std::vector<int>& fds) const;
  //   NotFound
  absl::StatusOr<std::vector<UniqueFd>> Get(std::string_view name) const;
  absl::Status Drop(std::string_view name) const;  // also where there is none
  // Sorted names that begin with `prefix`.
  absl::StatusOr<std::vector<std::string>> List(std::string_view prefix) const;
  // Lets go of everything and ends.
  absl::Status Quit() const;

  int connection() const { return connection_.get(); }  // readable when it is gone

 private:
  const UniqueFd connection_;
  const absl::Duration patience_;
};

}  // namespace kapsule::control
