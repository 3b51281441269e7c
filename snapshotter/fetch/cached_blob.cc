#include "snapshotter/fetch/cached_blob.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "core/archive/index_reader.h"
#include "core/base/log.h"

namespace kapsule::fetch {
namespace {

// The end of a blob: header, upper levels and the tags of the TOC at once.
constexpr uint64_t kTailBytes = 512 << 10;

class Tail final : public ReaderAt {
 public:
  static absl::StatusOr<Tail> Fetch(uint64_t blob_size, const FetchBytes& fetch) {
    Bytes bytes(std::min(blob_size, kTailBytes));
    RETURN_IF_ERROR(fetch(blob_size - bytes.size(), bytes));
    return Tail(blob_size, std::move(bytes));
  }
  uint64_t size() const override { return size_; }
  bool Has(uint64_t offset, uint64_t length) const {
    return offset >= begin() && length <= size_ - offset;
  }
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    if (!Has(offset, out.size())) return absl::OutOfRangeError("before the end of the blob");
    std::memcpy(out.data(), bytes_.data() + (offset - begin()), out.size());
    return absl::OkStatus();
  }

 private:
  Tail(uint64_t size, Bytes bytes) : size_(size), bytes_(std::move(bytes)) {}
  uint64_t begin() const { return size_ - bytes_.size(); }
  uint64_t size_;
  Bytes bytes_;
};

uint64_t NextOwner() {
  static std::atomic<uint64_t> last = 0;
  return ++last;
}

}  // namespace

CachedBlob::CachedBlob(const CacheFolder& folder, const BlobName& name,
                       const archive::IndexHeader& header, std::unique_ptr<BlobFile> file,
                       std::shared_ptr<archive::PageCache> memory)
    : folder_(folder),
      name_(name),
      header_(header),
      blocks_(CeilDiv(header.covered_length, header.block_size)),
      file_(std::move(file)),
      pages_(header, *file_, std::move(memory), NextOwner()) {}

absl::StatusOr<CachedBlob::Loaded> CachedBlob::Load(const CacheFolder& folder, const BlobName& name,
                                                    std::shared_ptr<archive::PageCache> memory,
                                                    const FetchBytes& fetch) {
  ASSIGN_OR_RETURN(std::unique_ptr<BlobFile> file, BlobFile::Open(folder, name.digest, name.size));
  absl::StatusOr<archive::IndexHeader> header = archive::ReadHeader(*file, name.index);
  std::optional<Tail> tail;
  if (!header.ok()) {
    ASSIGN_OR_RETURN(tail, Tail::Fetch(name.size, fetch));
    ASSIGN_OR_RETURN(header, archive::ReadHeader(*tail, name.index));
    RETURN_IF_ERROR(file->Write(name.index.offset, header->Encode()));
  }
  const uint64_t blocks = CeilDiv(header->covered_length, header->block_size);
  if (blocks > kMaxBlocks)
    return FailedPrecondition("the layer has {} blocks of {} bytes, more than the limit of {}",
                              blocks, header->block_size, kMaxBlocks);
  std::unique_ptr<CachedBlob> blob(
      new CachedBlob(folder, name, *header, std::move(file), std::move(memory)));
  BlockSet there = blob->ReadStored();
  blob->DropHoles(there);
  const Range toc = blob->toc_blocks();
  if (toc.count != 0) {
    const FetchBytes near = [&](uint64_t offset, MutableByteSpan out) {
      return tail && tail->Has(offset, out.size()) ? tail->ReadAt(offset, out) : fetch(offset, out);
    };
    RETURN_IF_ERROR(blob->Prepare(toc, near));
  }
  return Loaded{std::move(blob), std::move(there)};
}

// Without a list that can be believed, all is fetched again.
BlockSet CachedBlob::ReadStored() const {
  BlockSet none(blocks_);
  const absl::StatusOr<std::string> bytes = folder_.ReadList(name_.digest);
  if (absl::IsNotFound(bytes.status())) return none;
  absl::StatusOr<BlockList> list =
      bytes.ok() ? BlockList::Decode(AsBytes(*bytes)) : absl::StatusOr<BlockList>(bytes.status());
  if (list.ok() && list->root == name_.index.root && list->blob_size == name_.size &&
      list->inode == file_->id().inode && list->block_size == header_.block_size &&
      list->blocks.size() == blocks_)
    return std::move(list->blocks);
  log::warn("cache: what is there of {} is fetched again: {}", name_.digest.text(),
            list.ok() ? "its list is of another file or index" : Describe(list.status()));
  return none;
}

void CachedBlob::DropHoles(BlockSet& there) const {
  const uint64_t listed = there.count();
  for (uint64_t block = there.Next(true, 0); block < blocks_;) {
    const uint64_t hole = file_->NextHole(OffsetOf(block));
    while (block < blocks_ && OffsetOf(block) + LengthOf(block) <= hole)
      block = there.Next(true, block + 1);
    if (block < blocks_ && hole >= OffsetOf(block)) there.Remove(block);
    if (block < blocks_) block = there.Next(true, block);
  }
  if (there.count() < listed)
    log::warn("cache: {} of the {} blocks that the list of {} names are not in its file",
              listed - there.count(), listed, name_.digest.text());
}

size_t CachedBlob::LengthOf(uint64_t block) const { return BytesOf({block, 1}); }

uint64_t CachedBlob::BytesOf(Range blocks) const {
  return std::min(OffsetOf(blocks.end()), header_.covered_length) - OffsetOf(blocks.first);
}

Range CachedBlob::toc_blocks() const {
  if (header_.toc_length == 0) return {};
  const uint64_t first = header_.tar_length / header_.block_size;
  return {first, (header_.tar_length + header_.toc_length - 1) / header_.block_size - first + 1};
}

absl::Status CachedBlob::Prepare(Range blocks, const FetchBytes& fetch) {
  return pages_.Ensure(blocks, fetch);
}

absl::Status CachedBlob::Put(uint64_t block, ByteSpan bytes, const FetchBytes& fetch) {
  ASSIGN_OR_RETURN(const oci::Digest expected, pages_.DigestOf(block, fetch));
  if (oci::Digest::Of(bytes) != expected)
    return DataLoss("block {} came with another digest than the index names", block);
  RETURN_IF_ERROR(pages_.Ensure({block, 1}, fetch));
  return file_->Write(OffsetOf(block), bytes);
}

absl::StatusOr<bool> CachedBlob::Check(uint64_t block, MutableByteSpan buffer,
                                       const FetchBytes& fetch) {
  RETURN_IF_ERROR(pages_.Mend(block, fetch));
  ASSIGN_OR_RETURN(const oci::Digest expected, pages_.DigestOf(block, fetch));
  const MutableByteSpan bytes = buffer.first(LengthOf(block));
  return file_->ReadAt(OffsetOf(block), bytes).ok() && oci::Digest::Of(bytes) == expected;
}

absl::Status CachedBlob::Store(const BlockSet& there) const {
  RETURN_IF_ERROR(file_->Sync());
  return StoreList(there);
}

absl::Status CachedBlob::Punch(const std::vector<Range>& ranges, const BlockSet& left) const {
  // What a full disk has no room for can be told by nothing at all.
  if (!Store(left).ok()) RETURN_IF_ERROR(folder_.RemoveList(name_.digest));
  for (const Range& range : ranges)
    RETURN_IF_ERROR(file_->Punch(OffsetOf(range.first), BytesOf(range)));
  return absl::OkStatus();
}

absl::Status CachedBlob::StoreList(const BlockSet& there) const {
  const BlockList list{name_.index.root, name_.size, file_->id().inode,
                       static_cast<uint32_t>(block_size()), there};
  return folder_.WriteList(name_.digest, list.Encode());
}

}  // namespace kapsule::fetch
