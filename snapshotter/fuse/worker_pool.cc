#include "snapshotter/fuse/worker_pool.h"

#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <thread>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

uint32_t OpcodeOf(ByteSpan request) {
  return request.size() < sizeof(fuse_in_header)
             ? 0
             : LoadLe<uint32_t>(request.data() + offsetof(fuse_in_header, opcode));
}

// ENOENT: the request was interrupted before the kernel saw it leave; EAGAIN and
// EINTR: nothing happened.
bool IsTransient(int error) { return error == ENOENT || error == EINTR || error == EAGAIN; }

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerPool>> WorkerPool::Make(unsigned workers) {
  std::vector<Buffers> buffers;
  for (unsigned i = 0; i < workers; ++i) {
    ASSIGN_OR_RETURN(LockedBuffer request, LockedBuffer::Make(kRequestBuffer));
    ASSIGN_OR_RETURN(LockedBuffer reply, LockedBuffer::Make(Reply::kBufferSize));
    buffers.push_back({std::move(request), std::move(reply)});
  }
  return std::unique_ptr<WorkerPool>(new WorkerPool(std::move(buffers)));
}

absl::Status WorkerPool::Start(UniqueFd fuse, Session& session, Events events) {
  fuse_ = std::move(fuse);
  events_ = std::move(events);
  try {
    for (const Buffers& buffers : buffers_)
      std::thread([this, &buffers, &session] { Serve(buffers, session); }).detach();
  } catch (const std::system_error& e) {
    return ResourceExhausted("start a FUSE worker: {}", e.what());
  }
  return absl::OkStatus();
}

void WorkerPool::Serve(const Buffers& buffers, Session& session) const {
  const Reply reply(buffers.reply.bytes());
  const MutableByteSpan room = buffers.request.bytes();
  for (;;) {
    const ssize_t n = read(fuse_.get(), room.data(), room.size());
    if (n < 0 && IsTransient(errno)) continue;
    if (n <= 0) {
      events_.connection_lost(n < 0 && errno == ENODEV
                                  ? Unavailable("the FUSE mount is gone")
                                  : ErrnoStatus(n < 0 ? errno : EIO, "read /dev/fuse"));
      return;
    }
    const ByteSpan request = room.first(static_cast<size_t>(n));
    const ByteSpan answer = session.Handle(request, reply);
    if (answer.empty()) continue;
    // ENOENT: the caller did not wait. Other errors leave the next read to judge.
    if (write(fuse_.get(), answer.data(), answer.size()) < 0 && !IsTransient(errno))
      log::warn("reply to FUSE request {}: {}", OpcodeOf(request),
                Message(ErrnoStatus(errno, "write /dev/fuse")));
    else if (OpcodeOf(request) == FUSE_INIT)
      events_.initialised();
  }
}

}  // namespace kapsule::fuse
