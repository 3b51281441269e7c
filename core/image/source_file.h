// A file that is read once, from its beginning to its end, and must not change
// meanwhile.
#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <memory>

#include "core/base/file.h"

namespace kapsule::image {

// What the page cache has is copied from there; all else is read around it, so
// that a model does not push everything else out of memory. Not thread-safe.
class SourceFile {
 public:
  // FailedPrecondition: it has not `size` bytes.
  static absl::StatusOr<std::unique_ptr<SourceFile>> Open(const std::filesystem::path& path,
                                                          uint64_t size);
  ~SourceFile();

  uint64_t left() const { return file_->size() - at_; }
  // Reads the next bytes, at most left(); at least one where `room` and left()
  // are not empty. `room` may be overwritten behind them. Aligned room of whole
  // pages is the fastest. Errors of ReaderAt, without the file's name.
  absl::StatusOr<size_t> Read(MutableByteSpan room);

  // FailedPrecondition: it was written to after Open().
  absl::Status CheckUnchanged() const;

 private:
  SourceFile(std::filesystem::path path, std::unique_ptr<FileReader> file);
  bool InPageCache(size_t size) const;
  size_t ReadDirect(MutableByteSpan room);

  const std::filesystem::path path_;
  const std::unique_ptr<FileReader> file_;
  struct stat opened_ {};
  void* map_ = nullptr;  // only to ask what is in the page cache; or null
  uint64_t at_ = 0;
  bool can_direct_ = true;
};

}  // namespace kapsule::image
