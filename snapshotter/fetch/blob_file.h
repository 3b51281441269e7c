// The file of one cached blob: sparse, of the blob's size and offsets.
#pragma once

#include <memory>

#include "core/blob/direct_file.h"
#include "core/control/fetch_wire.h"
#include "snapshotter/fetch/cache_folder.h"

namespace kapsule::fetch {

// Thread-safe; whoever reads it past the page cache, in another process, sees what
// was written. Owns two descriptors.
class BlobFile final : public ReaderAt {
 public:
  // The file of `size` bytes that `folder` has, or a new one. One of another size
  // is replaced. `folder` outlives it.
  static absl::StatusOr<std::unique_ptr<BlobFile>> Open(const CacheFolder& folder,
                                                        const oci::Digest& blob, uint64_t size);

  // Another descriptor of it: read-only, O_DIRECT where its file system takes that.
  absl::StatusOr<UniqueFd> OpenForReader() const;
  uint64_t size() const override { return reader_->size(); }
  // What is on the disk, not what the page cache has, where there is O_DIRECT.
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override;
  // Past the page cache where offset, length and address are multiples of
  // blob::kDirectUnit.
  //   ResourceExhausted  the disk is full
  absl::Status Write(uint64_t offset, ByteSpan bytes) const;
  absl::Status Punch(uint64_t offset, uint64_t length) const;
  absl::Status Sync() const;  // what was written stays

  const control::FetchFile& id() const { return id_; }
  uint64_t BytesOnDisk() const;
  // The first byte from `offset` on that nothing was written to since it was made or
  // punched; size() where there is none, or the file system does not know.
  uint64_t NextHole(uint64_t offset) const;

 private:
  BlobFile(const CacheFolder& folder, const oci::Digest& blob, UniqueFd file,
           const control::FetchFile& id)
      : folder_(folder), blob_(blob), file_(std::move(file)), id_(id) {}

  const CacheFolder& folder_;
  const oci::Digest blob_;
  const UniqueFd file_;
  const control::FetchFile id_;
  UniqueFd direct_;  // invalid where there is no O_DIRECT
  std::unique_ptr<blob::DirectFileReader> reader_;
};

}  // namespace kapsule::fetch
