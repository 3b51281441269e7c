// The index of a blob that is partly there: each page is checked up to the root,
// fetched where the file does not have it, and written to the file.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <functional>
#include <memory>
#include <set>

#include "core/archive/index.h"
#include "core/archive/page_cache.h"
#include "snapshotter/fetch/blob_file.h"
#include "snapshotter/fetch/block_set.h"

namespace kapsule::fetch {

// Fills `out` from byte `offset` of the blob on, from far away.
using FetchBytes = std::function<absl::Status(uint64_t offset, MutableByteSpan out)>;

// Thread-safe; no lock is held over I/O, and a page is fetched once however many
// threads need it. Errors: those of `fetch` and of writing the file; DataLoss where
// what was fetched does not hash to what is above it.
class IndexPages {
 public:
  // `header` has been checked; `file` outlives the object. Pages are kept in
  // `memory` under `owner`, a number of this object alone there.
  IndexPages(const archive::IndexHeader& header, const BlobFile& file,
             std::shared_ptr<archive::PageCache> memory, uint64_t owner);
  ~IndexPages();
  IndexPages(const IndexPages&) = delete;
  IndexPages& operator=(const IndexPages&) = delete;

  // The file has every page over the digests and tags of `blocks`.
  absl::Status Ensure(Range blocks, const FetchBytes& fetch);
  absl::StatusOr<oci::Digest> DigestOf(uint64_t block, const FetchBytes& fetch);
  // Ensure() for one block that trusts nothing but the file's bytes of now.
  absl::Status Mend(uint64_t block, const FetchBytes& fetch);

 private:
  struct PageId {
    bool tags = false;
    size_t level = 0;
    uint64_t number = 0;
  };
  using Page = archive::PageCache::Page;
  using Visit = std::function<absl::Status(const PageId&)>;

  class Loading;

  // The pages over `blocks`, from the roots downwards.
  absl::Status ForEach(Range blocks, const Visit& visit) const;
  absl::StatusOr<Page> Get(const PageId& id, const FetchBytes& fetch);
  absl::StatusOr<Page> Load(const PageId& id, const FetchBytes& fetch);
  absl::StatusOr<oci::Digest> Expected(const PageId& id, const FetchBytes& fetch);
  bool IsThere(const PageId& id) const ABSL_LOCKS_EXCLUDED(mu_);
  const archive::Table& table(const PageId& id) const {
    return id.tags ? layout_.tags : layout_.blocks;
  }

  const archive::IndexHeader header_;
  const archive::IndexLayout layout_;
  const BlobFile& file_;
  const std::shared_ptr<archive::PageCache> memory_;
  const uint64_t owner_;

  mutable absl::Mutex mu_;
  std::set<uint64_t> there_ ABSL_GUARDED_BY(mu_);    // in the file, checked
  std::set<uint64_t> loading_ ABSL_GUARDED_BY(mu_);  // by some thread
};

}  // namespace kapsule::fetch
