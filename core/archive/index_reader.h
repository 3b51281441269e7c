// Reading the index of a layer on demand, each page checked up to the root.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/archive/index.h"
#include "core/archive/page_cache.h"
#include "core/base/file.h"
#include "core/oci/annotations.h"

namespace kapsule::archive {

// The header that `ref` names in `blob`. Reads nothing else.
//   DataLoss       it does not hash to ref.root, or blob and header disagree
//                  on where it stands: another blob, or a shortened one
//   InvalidArgument, Unimplemented  as IndexHeader::Decode()
absl::StatusOr<IndexHeader> ReadHeader(const ReaderAt& blob, const oci::IndexRef& ref);

// Entries of the two tables. Thread-safe; no lock is held over I/O, so threads
// that miss the same page together each load it.
class IndexReader {
 public:
  // `blob` outlives the reader; `header` has been checked (ReadHeader). Pages are
  // kept in `cache` under `owner`, a number of this reader alone there.
  IndexReader(const ReaderAt& blob, const IndexHeader& header, std::shared_ptr<PageCache> cache,
              uint64_t owner);
  // With a cache of its own.
  IndexReader(const ReaderAt& blob, const IndexHeader& header, size_t cache_bytes = 4 << 20);
  IndexReader(const IndexReader&) = delete;
  IndexReader& operator=(const IndexReader&) = delete;
  ~IndexReader();

  // Entries first, first + 1, … of a table.
  //   OutOfRange  the table has no such entries
  //   DataLoss    a page does not hash to what is above it: names the page
  absl::Status ReadTags(uint64_t first, std::span<Tag> out) const;
  absl::Status ReadBlockDigests(uint64_t first, std::span<oci::Digest> out) const;

  const IndexLayout& layout() const { return layout_; }
  size_t cached_bytes() const { return cache_->bytes(); }

 private:
  enum class Tree { kBlocks, kTags };
  struct PageId {
    Tree tree;
    size_t level;
    uint64_t number;
  };
  using Page = PageCache::Page;

  absl::Status Read(Tree tree, uint64_t first, uint64_t count, std::byte* out) const;
  absl::StatusOr<Page> GetPage(const PageId& id) const;
  absl::StatusOr<Page> LoadPage(const PageId& id) const;
  absl::StatusOr<oci::Digest> ExpectedDigest(const PageId& id) const;
  PageCache::Key KeyOf(const PageId& id) const;
  const Table& table(Tree tree) const;

  const ReaderAt& blob_;
  const IndexLayout layout_;
  const oci::Digest block_root_, tag_root_;
  const std::shared_ptr<PageCache> cache_;
  const uint64_t owner_;
};

}  // namespace kapsule::archive
