// The FUSE protocol (linux/fuse.h, raw) over a flat, read-only directory of
// views. No I/O on /dev/fuse: bytes of a request in, bytes of its reply out.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <linux/fuse.h>

#include <optional>
#include <set>

#include "core/base/bytes.h"
#include "snapshotter/fuse/locked_buffer.h"
#include "snapshotter/fuse/reply.h"
#include "snapshotter/fuse/request_memory.h"
#include "snapshotter/fuse/view_table.h"

namespace kapsule::fuse {

// Thread-safe, with a Reply for each thread.
class Session {
 public:
  explicit Session(ViewTable& views) : views_(views) {}

  // A read of bytes that are there; the caller gets and sends them.
  struct PendingRead {
    fuse_in_header header;
    fuse_read_in in;
    ViewPtr view;
    size_t length = 0;  // of the answer, from in.offset on; 1 to kMaxRead
  };
  // What to write to /dev/fuse; empty where there is no reply, or a read is
  // still to be done.
  struct Outcome {
    ByteSpan reply;
    std::optional<PendingRead> read;
  };

  // The request in `slot`, which also notes what it opens and releases. No reply
  // where it has none or is too broken to be answered. Malformed requests give
  // EINVAL, unknown ones ENOSYS.
  Outcome Handle(ByteSpan request, const Reply& reply, const RequestSlot& slot);
  // What a read asks for: where there is nothing to read, an error or 0 for an
  // answer of no bytes.
  struct CheckedRead {
    int error = 0;
    std::optional<PendingRead> read;
  };
  CheckedRead CheckRead(const fuse_in_header& header, const fuse_read_in& in) const;
  // The reply to a request whose slot says that it was applied.
  static ByteSpan AnswerApplied(ByteSpan request, const Reply& reply, const RequestSlot& slot);
  // The reply that the request failed; empty where it has none.
  static ByteSpan Refuse(ByteSpan request, const Reply& reply, int error);

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
  Result Dispatch(const Request& request, MutableByteSpan body, const RequestSlot& slot);
  Result Init(const Request& request, MutableByteSpan body);
  Result Lookup(const Request& request, MutableByteSpan body);
  Result GetAttr(const Request& request, MutableByteSpan body);
  Result Open(const Request& request, MutableByteSpan body, const RequestSlot& slot);
  Result Release(const Request& request, const RequestSlot& slot);
  Result OpenDir(const Request& request, MutableByteSpan body);
  Result ReadDir(const Request& request, MutableByteSpan body);
  Result StatFs(MutableByteSpan body);
  Result Unknown(uint32_t opcode) ABSL_LOCKS_EXCLUDED(mu_);

  ViewTable& views_;

  absl::Mutex mu_;
  std::set<uint32_t> unknown_ ABSL_GUARDED_BY(mu_);  // opcodes that were logged
};

}  // namespace kapsule::fuse
