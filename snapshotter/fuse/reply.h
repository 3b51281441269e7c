// Where the answer to a FUSE request is put together.
#pragma once

#include <linux/fuse.h>

#include "core/base/bytes.h"

namespace kapsule::fuse {

inline constexpr size_t kMaxRead = 1024 * 1024;  // also the mount option max_read
inline constexpr size_t kPage = 4096;

// The header ends where a page begins, so that data lies on pages of its own and
// goes out in one write.
class Reply {
 public:
  static constexpr size_t kBufferSize = kPage + kMaxRead;
  // `buffer` has kBufferSize bytes, page-aligned.
  explicit Reply(MutableByteSpan buffer) : buffer_(buffer) {}

  // kMaxRead bytes for the body.
  MutableByteSpan body() const { return buffer_.subspan(kPage, kMaxRead); }
  // The whole reply; `error` is 0 or a positive errno, then without body.
  ByteSpan Finish(uint64_t unique, int error, size_t body_length) const;

 private:
  const MutableByteSpan buffer_;
};

// The header of a reply to request `unique`; `error` as above.
fuse_out_header ReplyHeader(uint64_t unique, int error, size_t body_length);

}  // namespace kapsule::fuse
