// The FUSE protocol (linux/fuse.h, raw) over a flat, read-only directory of
// views. No I/O on /dev/fuse: bytes of a request in, bytes of its reply out.
#pragma once

#include <linux/fuse.h>

#include "core/base/bytes.h"
#include "snapshotter/fuse/locked_buffer.h"
#include "snapshotter/fuse/view_table.h"

namespace kapsule::fuse {

inline constexpr size_t kMaxRead = 1024 * 1024;  // also the mount option max_read
inline constexpr size_t kPage = 4096;
// The kernel wants room for FUSE_MIN_READ_BUFFER, or max_write and its headers.
inline constexpr size_t kRequestBuffer = 32 * 1024;

// Where a reply is put together: the header ends where a page begins, so that
// data lies on pages of its own and goes out in one write.
class Reply {
 public:
  static constexpr size_t kBufferSize = kPage + kMaxRead;
  explicit Reply(MutableByteSpan buffer) : buffer_(buffer) {}

  // kMaxRead bytes for the body.
  MutableByteSpan body() const { return buffer_.subspan(kPage, kMaxRead); }
  // The whole reply; `error` is 0 or a positive errno, then without body.
  ByteSpan Finish(uint64_t unique, int error, size_t body_length) const;

 private:
  const MutableByteSpan buffer_;  // kBufferSize bytes, page-aligned
};

// Thread-safe, with a Reply for each thread.
class Session {
 public:
  explicit Session(ViewTable& views) : views_(views) {}

  // What to write to /dev/fuse; empty where the request has no reply or is too
  // broken to be answered. Malformed requests give EINVAL, unknown ones ENOSYS.
  ByteSpan Handle(ByteSpan request, const Reply& reply);

 private:
  // The length of the body that was put into `body`, or an errno.
  struct Result {
    int error = 0;
    size_t length = 0;
  };
  struct Request {
    fuse_in_header header;
    ByteSpan body;
  };
  Result Dispatch(const Request& request, MutableByteSpan body);
  Result Init(const Request& request, MutableByteSpan body);
  Result Lookup(const Request& request, MutableByteSpan body);
  Result GetAttr(const Request& request, MutableByteSpan body);
  Result Open(const Request& request, MutableByteSpan body);
  Result Read(const Request& request, MutableByteSpan body);
  Result Release(const Request& request);
  Result OpenDir(const Request& request, MutableByteSpan body);
  Result ReadDir(const Request& request, MutableByteSpan body);
  Result StatFs(MutableByteSpan body);

  ViewTable& views_;
};

}  // namespace kapsule::fuse
