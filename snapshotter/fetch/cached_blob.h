// One blob in the cache: what is in its file is checked up to the index's root.
#pragma once

#include <memory>

#include "core/archive/page_cache.h"
#include "core/oci/annotations.h"
#include "snapshotter/fetch/block_list.h"
#include "snapshotter/fetch/index_pages.h"

namespace kapsule::fetch {

struct BlobName {
  oci::Digest digest;
  uint64_t size = 0;
  oci::IndexRef index;
};

// Thread-safe. Which blocks are there is the caller's to keep.
class CachedBlob {
 public:
  struct Loaded {
    std::unique_ptr<CachedBlob> blob;
    // As the stored list says, where it is of this file and index, without blocks
    // that the file has not whole: an older list may name what was punched since.
    BlockSet there;
  };
  // Opens or makes the file; `fetch` is called where the header is not there yet.
  // `folder` outlives the blob.
  //   DataLoss             header and `name` disagree
  //   FailedPrecondition   more than kMaxBlocks blocks
  static absl::StatusOr<Loaded> Load(const CacheFolder& folder, const BlobName& name,
                                     std::shared_ptr<archive::PageCache> memory,
                                     const FetchBytes& fetch);

  const BlobName& name() const { return name_; }
  uint64_t blocks() const { return blocks_; }
  uint64_t block_size() const { return header_.block_size; }
  uint64_t OffsetOf(uint64_t block) const { return block * header_.block_size; }
  size_t LengthOf(uint64_t block) const;
  uint64_t BytesOf(Range blocks) const;
  Range toc_blocks() const;  // count 0 where there is no TOC

  const control::FetchFile& file() const { return file_->id(); }
  absl::StatusOr<UniqueFd> OpenForReader() const { return file_->OpenForReader(); }
  uint64_t BytesOnDisk() const { return file_->BytesOnDisk(); }

  // Gets the index pages that Put() of these blocks needs.
  absl::Status Prepare(Range blocks, const FetchBytes& fetch);
  // Writes the block, which after OK can be announced.
  //   DataLoss  it has not the digest that the index names
  absl::Status Put(uint64_t block, ByteSpan bytes, const FetchBytes& fetch);
  // Whether the file has the block; pages above it are mended. `buffer` holds one.
  absl::StatusOr<bool> Check(uint64_t block, MutableByteSpan buffer, const FetchBytes& fetch);

  // Makes what was written last, then stores the list of it.
  absl::Status Store(const BlockSet& there) const;
  // Stores that only `left` is there, then punches `ranges`.
  absl::Status Punch(const std::vector<Range>& ranges, const BlockSet& left) const;

 private:
  CachedBlob(const CacheFolder& folder, const BlobName& name, const archive::IndexHeader& header,
             std::unique_ptr<BlobFile> file, std::shared_ptr<archive::PageCache> memory);
  BlockSet ReadStored() const;
  void DropHoles(BlockSet& there) const;
  absl::Status StoreList(const BlockSet& there) const;

  const CacheFolder& folder_;
  const BlobName name_;
  const archive::IndexHeader header_;
  const uint64_t blocks_;
  const std::unique_ptr<BlobFile> file_;
  IndexPages pages_;
};

}  // namespace kapsule::fetch
