// Reading the index of a layer on demand, each page checked up to the root.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <tuple>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "core/archive/index.h"
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
  // `blob` outlives the reader; `header` has been checked (ReadHeader). Pages of
  // up to `cache_bytes` are kept, the least recently used are dropped.
  IndexReader(const ReaderAt& blob, const IndexHeader& header, size_t cache_bytes = 4 << 20);

  // Entries first, first + 1, … of a table.
  //   OutOfRange  the table has no such entries
  //   DataLoss    a page does not hash to what is above it: names the page
  absl::Status ReadTags(uint64_t first, std::span<Tag> out) const;
  absl::Status ReadBlockDigests(uint64_t first, std::span<oci::Digest> out) const;

  const IndexLayout& layout() const { return layout_; }
  size_t cached_bytes() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  enum class Tree { kBlocks, kTags };
  using PageId = std::tuple<Tree, size_t, uint64_t>;  // tree, level, page
  using Page = std::shared_ptr<const Bytes>;
  struct Cached {
    Page page;
    std::list<PageId>::iterator use;
  };

  absl::Status Read(Tree tree, uint64_t first, uint64_t count, std::byte* out) const;
  absl::StatusOr<Page> GetPage(const PageId& id) const;
  absl::StatusOr<oci::Digest> ExpectedDigest(const PageId& id) const;
  Page FindCached(const PageId& id) const ABSL_LOCKS_EXCLUDED(mu_);
  void Keep(const PageId& id, Page page) const ABSL_LOCKS_EXCLUDED(mu_);
  const Table& table(Tree tree) const;

  const ReaderAt& blob_;
  const IndexLayout layout_;
  const oci::Digest block_root_, tag_root_;
  const size_t cache_bytes_;

  mutable absl::Mutex mu_;  // map access only
  mutable std::map<PageId, Cached> pages_ ABSL_GUARDED_BY(mu_);
  mutable std::list<PageId> uses_ ABSL_GUARDED_BY(mu_);  // most recent first
  mutable size_t used_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace kapsule::archive
