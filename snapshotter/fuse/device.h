// /dev/fuse of one mount.
#pragma once

#include <atomic>
#include <functional>

#include "core/base/file.h"

namespace kapsule::fuse {

// Thread-safe.
class FuseDevice {
 public:
  // `first_reply` is called once, after the first answer went out.
  //   InvalidArgument  `fd` is another device
  static absl::StatusOr<std::unique_ptr<FuseDevice>> Open(UniqueFd fd,
                                                          std::function<void()> first_reply);

  // Waits for a request and returns its length; 0 where there was none after
  // all. Unavailable: the mount is gone.
  absl::StatusOr<size_t> Read(MutableByteSpan room) const;
  // Writes a whole reply. Nobody may wait for it any more, and what else goes
  // wrong shows in the next read: so an error is only logged.
  void Send(ByteSpan reply);

 private:
  FuseDevice(UniqueFd fd, std::function<void()> first_reply)
      : fd_(std::move(fd)), first_reply_(std::move(first_reply)) {}

  const UniqueFd fd_;
  const std::function<void()> first_reply_;
  std::atomic<bool> replied_ = false;
};

}  // namespace kapsule::fuse
