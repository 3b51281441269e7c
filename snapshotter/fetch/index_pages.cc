#include "snapshotter/fetch/index_pages.h"

#include <algorithm>
#include <utility>

namespace kapsule::fetch {
namespace {

using archive::kDigestSize;
using archive::kPageSize;

// Levels are below 16, and page numbers below 2^27 (archive::kMaxCoveredLength).
uint64_t NumberOf(bool tags, size_t level, uint64_t number) {
  return uint64_t{tags} << 63 | uint64_t{level} << 48 | number;
}

}  // namespace

// Others wait for the page meanwhile, however this one's loading ends.
class IndexPages::Loading {
 public:
  Loading(IndexPages& pages, uint64_t name) : pages_(pages), name_(name) {}
  Loading(const Loading&) = delete;
  Loading& operator=(const Loading&) = delete;
  ~Loading() {
    absl::MutexLock lock(&pages_.mu_);
    pages_.loading_.erase(name_);
  }

 private:
  IndexPages& pages_;
  const uint64_t name_;
};

IndexPages::IndexPages(const archive::IndexHeader& header, const BlobFile& file,
                       std::shared_ptr<archive::PageCache> memory, uint64_t owner)
    : header_(header),
      layout_(archive::LayoutOf(header)),
      file_(file),
      memory_(std::move(memory)),
      owner_(owner) {}

IndexPages::~IndexPages() { memory_->Forget(owner_); }

absl::Status IndexPages::Ensure(Range blocks, const FetchBytes& fetch) {
  return ForEach(blocks, [&](const PageId& id) {
    return IsThere(id) ? absl::OkStatus() : Load(id, fetch).status();
  });
}

absl::Status IndexPages::Mend(uint64_t block, const FetchBytes& fetch) {
  return ForEach({block, 1}, [&](const PageId& id) { return Load(id, fetch).status(); });
}

absl::StatusOr<oci::Digest> IndexPages::DigestOf(uint64_t block, const FetchBytes& fetch) {
  const uint64_t at = block * kDigestSize;
  ASSIGN_OR_RETURN(const Page page, Get({false, 0, at / kPageSize}, fetch));
  oci::Digest::Raw raw;
  std::memcpy(raw.data(), page->data() + at % kPageSize, raw.size());
  return oci::Digest(raw);
}

absl::Status IndexPages::ForEach(Range blocks, const Visit& visit) const {
  const auto of_table = [&](bool tags, uint64_t first, uint64_t last) {
    const archive::Table& table = tags ? layout_.tags : layout_.blocks;
    constexpr uint64_t kPerPage = kPageSize / kDigestSize;
    for (size_t level = table.levels.size(); level-- > 0;) {
      uint64_t from = first * table.entry_size / kPageSize;
      uint64_t to = last * table.entry_size / kPageSize;
      for (size_t below = 0; below < level; ++below) {
        from /= kPerPage;
        to /= kPerPage;
      }
      for (uint64_t number = from; number <= to; ++number)
        RETURN_IF_ERROR(visit({tags, level, number}));
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(of_table(false, blocks.first, blocks.end() - 1));
  if (!header_.encrypted) return absl::OkStatus();
  const uint64_t chunks = header_.block_size / header_.chunk_size;
  return of_table(true, blocks.first * chunks,
                  std::min(blocks.end() * chunks, layout_.tags.entries) - 1);
}

absl::StatusOr<IndexPages::Page> IndexPages::Get(const PageId& id, const FetchBytes& fetch) {
  if (Page page = memory_->Find({owner_, NumberOf(id.tags, id.level, id.number)})) return page;
  return Load(id, fetch);
}

absl::StatusOr<IndexPages::Page> IndexPages::Load(const PageId& id, const FetchBytes& fetch) {
  const uint64_t name = NumberOf(id.tags, id.level, id.number);
  ASSIGN_OR_RETURN(const oci::Digest expected, Expected(id, fetch));
  {
    absl::MutexLock lock(&mu_);
    while (loading_.contains(name)) {
      const auto free = [this, name]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !loading_.contains(name); };
      mu_.Await(absl::Condition(&free));
    }
    loading_.insert(name);
    there_.erase(name);
  }
  const Loading loading(*this, name);
  const archive::Table::Level& where = table(id).levels[id.level];
  const uint64_t at = id.number * kPageSize, offset = where.offset + at;
  auto page = std::make_shared<Bytes>(std::min<uint64_t>(kPageSize, where.length - at));
  const absl::Status status = [&]() -> absl::Status {
    // A page that is not there reads as zeros.
    if (file_.ReadAt(offset, *page).ok() && oci::Digest::Of(*page) == expected)
      return absl::OkStatus();
    RETURN_IF_ERROR(fetch(offset, *page));
    if (oci::Digest::Of(*page) != expected)
      return DataLoss("the index page at byte {} came with another digest", offset);
    return file_.Write(offset, *page);
  }();
  RETURN_IF_ERROR(status);
  memory_->Keep({owner_, name}, page);
  absl::MutexLock lock(&mu_);
  there_.insert(name);
  return page;
}

absl::StatusOr<oci::Digest> IndexPages::Expected(const PageId& id, const FetchBytes& fetch) {
  if (id.level + 1 == table(id).levels.size())
    return id.tags ? header_.tag_root : header_.block_root;
  constexpr uint64_t kPerPage = kPageSize / kDigestSize;
  ASSIGN_OR_RETURN(const Page above, Get({id.tags, id.level + 1, id.number / kPerPage}, fetch));
  oci::Digest::Raw raw;
  std::memcpy(raw.data(), above->data() + id.number % kPerPage * kDigestSize, raw.size());
  return oci::Digest(raw);
}

bool IndexPages::IsThere(const PageId& id) const {
  absl::MutexLock lock(&mu_);
  return there_.contains(NumberOf(id.tags, id.level, id.number));
}

}  // namespace kapsule::fetch
