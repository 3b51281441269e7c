#include "core/model/gguf_cursor.h"

#include <algorithm>

#include "core/model/gguf.h"

namespace kapsule::model {
namespace {

constexpr uint64_t kBufferBytes = 64 << 10;

}  // namespace

GgufCursor::GgufCursor(const ReaderAt& file)
    : file_(file), end_(std::min(file.size(), kMaxGgufHeaderBytes)) {}

absl::StatusOr<uint64_t> GgufCursor::ReadLength(uint64_t limit) {
  ASSIGN_OR_RETURN(const uint64_t length, Read<uint64_t>());
  if (length > limit)
    return InvalidArgument("a string of {} bytes at byte {}, more than the limit of {}", length,
                           position_, limit);
  RETURN_IF_ERROR(CheckLeft(length));
  return length;
}

absl::StatusOr<std::string> GgufCursor::ReadString(uint64_t limit) {
  ASSIGN_OR_RETURN(const uint64_t length, ReadLength(limit));
  std::string text(length, '\0');
  RETURN_IF_ERROR(Fill(std::as_writable_bytes(std::span(text))));
  return text;
}

absl::Status GgufCursor::SkipString() {
  ASSIGN_OR_RETURN(const uint64_t length, ReadLength(kMaxGgufStringBytes));
  position_ += length;
  return absl::OkStatus();
}

absl::Status GgufCursor::Skip(uint64_t length) {
  RETURN_IF_ERROR(CheckLeft(length));
  position_ += length;
  return absl::OkStatus();
}

absl::Status GgufCursor::CheckLeft(uint64_t length) const {
  if (length <= end_ - position_) return absl::OkStatus();
  if (end_ < file_.size())
    return InvalidArgument("the header is longer than the limit of {} bytes", kMaxGgufHeaderBytes);
  return InvalidArgument("the header is cut short at byte {}", file_.size());
}

absl::Status GgufCursor::Fill(MutableByteSpan out) {
  RETURN_IF_ERROR(CheckLeft(out.size()));
  while (!out.empty()) {
    if (position_ < buffer_begin_ || position_ >= buffer_begin_ + buffer_.size()) {
      buffer_.resize(std::min(kBufferBytes, end_ - position_));
      buffer_begin_ = position_;
      RETURN_IF_ERROR(file_.ReadAt(position_, buffer_));
    }
    const size_t from = position_ - buffer_begin_;
    const size_t n = std::min(out.size(), buffer_.size() - from);
    std::memcpy(out.data(), buffer_.data() + from, n);
    position_ += n;
    out = out.subspan(n);
  }
  return absl::OkStatus();
}

}  // namespace kapsule::model
