// Reads forward through the header of a GGUF file.
#pragma once

#include <array>
#include <span>
#include <string>

#include "core/base/bytes.h"
#include "core/base/file.h"

namespace kapsule::model {

// Never reads beyond kMaxGgufHeaderBytes, and allocates no more than what the
// file still holds. Errors: InvalidArgument where the header ends too early, is
// too long or a string is beyond its limit. Not thread-safe; `file` outlives it.
class GgufCursor {
 public:
  explicit GgufCursor(const ReaderAt& file);

  uint64_t position() const { return position_; }

  template <typename T>
  absl::StatusOr<T> Read() {
    std::array<std::byte, sizeof(T)> bytes;
    RETURN_IF_ERROR(Fill(bytes));
    return LoadLe<T>(bytes.data());
  }
  // A u64 length and as many bytes, at most `limit`.
  absl::StatusOr<std::string> ReadString(uint64_t limit);
  absl::Status SkipString();
  absl::Status Skip(uint64_t length);

 private:
  absl::StatusOr<uint64_t> ReadLength(uint64_t limit);
  absl::Status CheckLeft(uint64_t length) const;
  absl::Status Fill(MutableByteSpan out);

  const ReaderAt& file_;
  const uint64_t end_;
  uint64_t position_ = 0;
  // What was read ahead: buffer_ holds the file from buffer_begin_ on.
  uint64_t buffer_begin_ = 0;
  Bytes buffer_;
};

}  // namespace kapsule::model
