#include "snapshotter/fuse/device.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

// ENOENT: the request was interrupted before the kernel saw it leave, or a
// predecessor has answered it; EAGAIN and EINTR: nothing happened.
bool IsTransient(int error) { return error == ENOENT || error == EINTR || error == EAGAIN; }

}  // namespace

absl::StatusOr<std::unique_ptr<FuseDevice>> FuseDevice::Open(UniqueFd fd,
                                                             std::function<void()> first_reply) {
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, "stat /dev/fuse");
  if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(10, 229))
    return InvalidArgument("the passed descriptor is not /dev/fuse");
  return std::unique_ptr<FuseDevice>(new FuseDevice(std::move(fd), std::move(first_reply)));
}

absl::StatusOr<size_t> FuseDevice::Read(MutableByteSpan room) const {
  const ssize_t n = read(fd_.get(), room.data(), room.size());
  if (n > 0) return static_cast<size_t>(n);
  if (n < 0 && IsTransient(errno)) return 0;
  if (n < 0 && errno == ENODEV) return Unavailable("the FUSE mount is gone");
  return ErrnoStatus(n < 0 ? errno : EIO, "read /dev/fuse");
}

void FuseDevice::Send(ByteSpan reply) {
  if (write(fd_.get(), reply.data(), reply.size()) < 0 && !IsTransient(errno)) {
    log::warn("reply to a FUSE request: {}", Message(ErrnoStatus(errno, "write /dev/fuse")));
    return;
  }
  if (!replied_.load(std::memory_order_relaxed) && !replied_.exchange(true)) first_reply_();
}

}  // namespace kapsule::fuse
