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

IndexReader::IndexReader(const ReaderAt& blob, const IndexHeader& header,
                         std::shared_ptr<PageCache> cache, uint64_t owner)
    : blob_(blob),
      layout_(LayoutOf(header)),
      block_root_(header.block_root),
      tag_root_(header.tag_root),
      cache_(std::move(cache)),
      owner_(owner) {}

IndexReader::IndexReader(const ReaderAt& blob, const IndexHeader& header, size_t cache_bytes)
    : IndexReader(blob, header, std::make_shared<PageCache>(cache_bytes), 0) {}

IndexReader::~IndexReader() { cache_->Forget(owner_); }

const Table& IndexReader::table(Tree tree) const {
  return tree == Tree::kBlocks ? layout_.blocks : layout_.tags;
}

// Levels are below 16, and page numbers below 2^27 (kMaxCoveredLength).
PageCache::Key IndexReader::KeyOf(const PageId& id) const {
  return {owner_, uint64_t{id.tree == Tree::kTags} << 63 | uint64_t{id.level} << 48 | id.number};
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

absl::StatusOr<IndexReader::Page> IndexReader::GetPage(const PageId& id) const {
  if (Page page = cache_->Find(KeyOf(id))) return page;
  return LoadPage(id);
}

absl::StatusOr<IndexReader::Page> IndexReader::LoadPage(const PageId& id) const {
  ASSIGN_OR_RETURN(const oci::Digest expected, ExpectedDigest(id));
  const Table::Level& where = table(id.tree).levels[id.level];
  const uint64_t at = id.number * kPageSize;
  auto page = std::make_shared<Bytes>(std::min<uint64_t>(kPageSize, where.length - at));
  const auto name = [&] {
    return fmt::format("index page {} of level {} of the {}", id.number, id.level,
                       id.tree == Tree::kBlocks ? "block digests" : "chunk tags");
  };
  const absl::Status read = blob_.ReadAt(where.offset + at, *page);
  if (!read.ok()) return Annotate(read, name());
  if (oci::Digest::Of(*page) != expected)
    return DataLoss("{} at byte {} of the blob is damaged", name(), where.offset + at);
  cache_->Keep(KeyOf(id), page);
  return page;
}

absl::StatusOr<oci::Digest> IndexReader::ExpectedDigest(const PageId& id) const {
  if (id.level + 1 == table(id.tree).levels.size())
    return id.tree == Tree::kBlocks ? block_root_ : tag_root_;
  constexpr uint64_t kPerPage = kPageSize / kDigestSize;
  ASSIGN_OR_RETURN(const Page above, GetPage({id.tree, id.level + 1, id.number / kPerPage}));
  oci::Digest::Raw raw;
  std::memcpy(raw.data(), above->data() + id.number % kPerPage * kDigestSize, raw.size());
  return oci::Digest(raw);
}

}  // namespace kapsule::archive
