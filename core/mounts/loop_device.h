// Loop devices: files as block devices, read with direct I/O.
#pragma once

#include <string>

#include "core/base/file.h"

namespace kapsule {

// A read-only loop device. The kernel detaches it when its last user closes it: this
// object, or what is mounted from it.
class LoopDevice {
 public:
  inline static constexpr int kReadAheadKb = 2048, kMaxSectorsKb = 1024;

  // Attaches the open file `file`, which the kernel keeps open; the device reads ahead
  // kReadAheadKb, by requests of kMaxSectorsKb. Of `mark`, the last 63 bytes are
  // remembered for DetachLoopDevices(). Thread-safe. Needs root.
  //   FailedPrecondition  no loop devices here, or the file takes no direct I/O; says
  //                       what to do
  static absl::StatusOr<LoopDevice> Attach(int file, const std::string& mark);

  const std::string& path() const { return path_; }  // "/dev/loop3"

 private:
  LoopDevice(std::string path, UniqueFd device)
      : path_(std::move(path)), device_(std::move(device)) {}
  std::string path_;
  UniqueFd device_;
};

// Detaches every loop device that was attached with `mark`; one that is in use goes
// with its last user. OK where there are no loop devices at all.
absl::Status DetachLoopDevices(const std::string& mark);

}  // namespace kapsule
