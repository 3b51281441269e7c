#include "core/blob/sparse_layer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>

#include "core/base/file.h"

namespace kapsule::blob {
namespace {

constexpr uint64_t kAlignment = 64 << 10;  // of file data and of the covered range
constexpr uint64_t kPage = archive::kPageSize;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "sparse layer: %s\n", Describe(status).c_str());
  std::abort();
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}

void WriteAt(int fd, uint64_t offset, std::string_view bytes) {
  if (pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)) !=
      static_cast<ssize_t>(bytes.size()))
    Must(ErrnoStatus(errno, "write"));
}

archive::Toc TocOf(const std::vector<SparseFile>& files, uint64_t* tar_length) {
  archive::Toc toc;
  toc.entries.push_back(archive::DirectoryEntry(""));
  uint64_t at = kAlignment;
  std::set<std::string> parents;
  for (const SparseFile& file : files) {
    archive::TocEntry entry = archive::FileEntry(file.path, file.size);
    entry.offset = at;
    entry.digest = oci::Digest::Of(AsBytes(file.path));
    const std::string parent(archive::ParentOf(file.path));
    if (!parent.empty() && parents.insert(parent).second)
      toc.entries.push_back(archive::DirectoryEntry(parent));
    toc.entries.push_back(std::move(entry));
    at = AlignUp(at + file.size, file.size < (1 << 20) ? 4096 : kAlignment);
  }
  archive::SortToc(toc);
  *tar_length = at + 1024;  // two empty blocks, so that it ends inside of a page
  return toc;
}

// Writes all levels of a table, whose level 0 is zeros except for `pages`.
oci::Digest WriteTable(int fd, const archive::Table& table,
                       const std::map<uint64_t, std::string>& pages) {
  std::string digests;
  const archive::Table::Level& entries = table.levels.front();
  const std::string zeros(kPage, '\0');
  const oci::Digest of_zeros = oci::Digest::Of(AsBytes(zeros));
  for (uint64_t page = 0; page < archive::PageCount(entries); ++page) {
    const auto found = pages.find(page);
    const uint64_t length = std::min(kPage, entries.length - page * kPage);
    if (found != pages.end()) WriteAt(fd, entries.offset + page * kPage, found->second);
    const oci::Digest digest = found != pages.end() ? oci::Digest::Of(AsBytes(found->second))
                               : length == kPage    ? of_zeros
                                                    : oci::Digest::Of(AsBytes(zeros).first(length));
    digests += AsText(digest.raw());
  }
  for (size_t level = 1; level < table.levels.size(); ++level) {
    WriteAt(fd, table.levels[level].offset, digests);
    std::string above;
    for (size_t at = 0; at < digests.size(); at += kPage)
      above += AsText(oci::Digest::Of(AsBytes(digests).subspan(
                                          at, std::min<size_t>(kPage, digests.size() - at)))
                          .raw());
    digests = std::move(above);
  }
  oci::Digest::Raw root;
  std::memcpy(root.data(), digests.data(), root.size());
  return oci::Digest(root);
}

class Writer {
 public:
  Writer(int fd, SparseLayer& sparse) : fd_(fd), layer_(sparse.layer) {}

  // Plaintext of the chunks from `first` on.
  void WriteChunks(uint64_t first, std::string_view plain) {
    crypt::LayerCipher cipher = Must(crypt::LayerCipher::Create(layer_.key));
    const uint32_t size = layer_.header.chunk_size;
    crypt::ChunkMac mac = Must(crypt::ChunkMac::Create(layer_.key, layer_.header.salt, size,
                                                       layer_.header.covered_length));
    for (size_t at = 0; at < plain.size(); at += size) {
      const uint64_t index = first + at / size;
      std::string stored(plain.substr(at, size));
      const MutableByteSpan bytes = std::as_writable_bytes(std::span(stored));
      Must(cipher.Apply(index * size, bytes, bytes));
      WriteAt(fd_, index * size, stored);
      PutTag(index, Must(mac.Tag(index, bytes)));
    }
  }
  const std::map<uint64_t, std::string>& tag_pages() const { return tag_pages_; }

 private:
  void PutTag(uint64_t index, const crypt::ChunkTag& tag) {
    const archive::Table tags = archive::LayoutOf(layer_.header).tags;
    const uint64_t at = index * archive::kTagSize, page = at / kPage;
    std::string& bytes = tag_pages_[page];
    bytes.resize(std::min(kPage, tags.levels.front().length - page * kPage));
    std::memcpy(bytes.data() + at % kPage, tag.data(), tag.size());
  }

  const int fd_;
  TestLayer& layer_;
  std::map<uint64_t, std::string> tag_pages_;
};

}  // namespace

std::string SparseChunk(uint64_t index, uint32_t chunk_size) {
  return TestBytes(chunk_size, static_cast<uint32_t>(index * 2654435761u));
}

SparseLayer WriteSparseLayer(const std::filesystem::path& path,
                             const std::vector<SparseFile>& files, uint32_t chunk_size) {
  SparseLayer sparse;
  TestLayer& layer = sparse.layer;
  archive::IndexHeader& header = layer.header;
  layer.toc = TocOf(files, &header.tar_length);
  const std::string toc = archive::SerializeToc(layer.toc);
  header.encrypted = true;
  header.chunk_size = chunk_size;
  header.toc_length = toc.size();
  header.covered_length = AlignUp(header.tar_length + toc.size(), kAlignment);
  layer.key = Must(crypt::LayerKey::Generate());
  Must(FillRandom(header.salt));
  header.commitment = Must(crypt::CommitmentTo(layer.key, header.salt));

  const UniqueFd fd = Must(OpenFile(path, O_RDWR | O_CREAT | O_EXCL, 0600));
  Writer writer(fd.get(), sparse);
  std::set<uint64_t> filled;
  for (const SparseFile& file : files)
    for (const uint64_t offset : file.filled)
      filled.insert((archive::FindEntry(layer.toc, file.path)->offset + offset) / chunk_size);
  for (const uint64_t chunk : filled) writer.WriteChunks(chunk, SparseChunk(chunk, chunk_size));
  // The chunks of the TOC, which begins inside of one.
  const uint64_t toc_chunk = header.tar_length / chunk_size;
  std::string end = SparseChunk(toc_chunk, chunk_size).substr(0, header.tar_length % chunk_size);
  end += toc;
  end.resize(header.covered_length - toc_chunk * chunk_size);
  writer.WriteChunks(toc_chunk, end);
  std::string stored_toc = toc;
  Must(Must(crypt::LayerCipher::Create(layer.key))
           .Apply(header.tar_length, AsBytes(toc), std::as_writable_bytes(std::span(stored_toc))));
  header.toc_digest = oci::Digest::Of(AsBytes(stored_toc));

  const archive::IndexLayout layout = archive::LayoutOf(header);
  header.block_root = WriteTable(fd.get(), layout.blocks, {});
  header.tag_root = WriteTable(fd.get(), layout.tags, writer.tag_pages());
  const auto header_bytes = header.Encode();
  WriteAt(fd.get(), layout.header_offset, AsText(header_bytes));
  sparse.size = layout.blob_size;
  layer.ref = {1, layout.header_offset, archive::kHeaderSize, oci::Digest::Of(header_bytes)};
  return sparse;
}

}  // namespace kapsule::blob
