#include "core/archive/index_reader.h"

#include <algorithm>
#include <utility>

namespace kapsule::archive {

absl::StatusOr<IndexHeader> ReadHeader(const ReaderAt& blob, const oci::IndexRef& ref) {
  if (ref.length != kHeaderSize || CheckedAdd(ref.offset, kHeaderSize) != blob.size())
    return DataLoss("index header of {} bytes at byte {} does not end a blob of {} bytes",
                    ref.length, ref.offset, blob.size());
  std::array<std::byte, kHeaderSize> bytes;
  RETURN_IF_ERROR(blob.ReadAt(ref.offset, bytes));
  if (oci::Digest::Of(bytes) != ref.root)
    return DataLoss("index header does not hash to the root {}", ref.root.text());
  ASSIGN_OR_RETURN(IndexHeader header, IndexHeader::Decode(bytes));
  const uint64_t expected = LayoutOf(header).header_offset;
  if (expected != ref.offset)
    return DataLoss("index header stands at byte {}, its numbers say {}", ref.offset, expected);
  return header;
}

IndexReader::IndexReader(const ReaderAt& blob, const IndexHeader& header, size_t cache_bytes)
    : blob_(blob),
      layout_(LayoutOf(header)),
      block_root_(header.block_root),
      tag_root_(header.tag_root),
      cache_bytes_(cache_bytes) {}

const Table& IndexReader::table(Tree tree) const {
  return tree == Tree::kBlocks ? layout_.blocks : layout_.tags;
}

absl::Status IndexReader::ReadTags(uint64_t first, std::span<Tag> out) const {
  static_assert(sizeof(Tag) == kTagSize);
  return Read(Tree::kTags, first, out.size(), std::as_writable_bytes(out).data());
}

absl::Status IndexReader::ReadBlockDigests(uint64_t first, std::span<oci::Digest> out) const {
  std::vector<oci::Digest::Raw> raw(out.size());
  RETURN_IF_ERROR(
      Read(Tree::kBlocks, first, out.size(), std::as_writable_bytes(std::span(raw)).data()));
  std::transform(raw.begin(), raw.end(), out.begin(),
                 [](const oci::Digest::Raw& r) { return oci::Digest(r); });
  return absl::OkStatus();
}

absl::Status IndexReader::Read(Tree tree, uint64_t first, uint64_t count, std::byte* out) const {
  const Table& t = table(tree);
  if (first > t.entries || count > t.entries - first)
    return absl::OutOfRangeError(
        fmt::format("index entries {} to {} of {}", first, first + count, t.entries));
  uint64_t at = first * t.entry_size;  // entries divide pages: none crosses one
  const uint64_t end = at + count * t.entry_size;
  while (at < end) {
    ASSIGN_OR_RETURN(const Page page, GetPage({tree, 0, at / kPageSize}));
    const uint64_t from = at % kPageSize;
    const uint64_t n = std::min(end - at, page->size() - from);
    std::memcpy(out, page->data() + from, n);
    out += n;
    at += n;
  }
  return absl::OkStatus();
}

// The page, from the cache or read and checked.
absl::StatusOr<IndexReader::Page> IndexReader::GetPage(const PageId& id) const {
  if (Page page = FindCached(id)) return page;
  ASSIGN_OR_RETURN(const oci::Digest expected, ExpectedDigest(id));

  const auto& [tree, level, number] = id;
  const Table::Level& where = table(tree).levels[level];
  const uint64_t at = number * kPageSize;
  auto page = std::make_shared<Bytes>(std::min<uint64_t>(kPageSize, where.length - at));
  const std::string name = fmt::format("index page {} of level {} of the {}", number, level,
                                       tree == Tree::kBlocks ? "block digests" : "chunk tags");
  const absl::Status read = blob_.ReadAt(where.offset + at, *page);
  if (!read.ok()) return Annotate(read, name);
  if (oci::Digest::Of(*page) != expected)
    return DataLoss("{} at byte {} of the blob is damaged", name, where.offset + at);
  Keep(id, page);
  return page;
}

absl::StatusOr<oci::Digest> IndexReader::ExpectedDigest(const PageId& id) const {
  const auto& [tree, level, number] = id;
  if (level + 1 == table(tree).levels.size())
    return tree == Tree::kBlocks ? block_root_ : tag_root_;
  constexpr uint64_t kPerPage = kPageSize / kDigestSize;
  ASSIGN_OR_RETURN(const Page above, GetPage({tree, level + 1, number / kPerPage}));
  oci::Digest::Raw raw;
  std::memcpy(raw.data(), above->data() + number % kPerPage * kDigestSize, raw.size());
  return oci::Digest(raw);
}

IndexReader::Page IndexReader::FindCached(const PageId& id) const {
  const absl::MutexLock lock(&mu_);
  const auto found = pages_.find(id);
  if (found == pages_.end()) return nullptr;
  uses_.splice(uses_.begin(), uses_, found->second.use);
  return found->second.page;
}

void IndexReader::Keep(const PageId& id, Page page) const {
  const absl::MutexLock lock(&mu_);
  if (pages_.contains(id)) return;  // another thread was faster
  uses_.push_front(id);
  used_ += page->size();
  pages_[id] = {std::move(page), uses_.begin()};
  while (used_ > cache_bytes_ && uses_.size() > 1) {
    const auto oldest = pages_.find(uses_.back());
    used_ -= oldest->second.page->size();
    pages_.erase(oldest);
    uses_.pop_back();
  }
}

size_t IndexReader::cached_bytes() const {
  const absl::MutexLock lock(&mu_);
  return used_;
}

}  // namespace kapsule::archive
