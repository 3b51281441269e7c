#include "snapshotter/fuse/reply.h"

namespace kapsule::fuse {

fuse_out_header ReplyHeader(uint64_t unique, int error, size_t body_length) {
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof(header) + (error == 0 ? body_length : 0));
  header.error = -error;
  header.unique = unique;
  return header;
}

ByteSpan Reply::Finish(uint64_t unique, int error, size_t body_length) const {
  const fuse_out_header header = ReplyHeader(unique, error, body_length);
  const MutableByteSpan whole = buffer_.subspan(kPage - sizeof(header), header.len);
  StoreLe(whole.data(), header);
  return whole;
}

}  // namespace kapsule::fuse
