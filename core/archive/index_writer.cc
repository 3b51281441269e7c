#include "core/archive/index_writer.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file.h"

namespace kapsule::archive {
namespace {

// A file without a name in `folder`.
absl::StatusOr<UniqueFd> TemporaryFile(const std::filesystem::path& folder) {
  UniqueFd fd(open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (fd.valid()) return fd;
  // Some file systems (overlayfs before 6.1, NFS) cannot do that.
  std::string name = (folder / "new-index-XXXXXX").string();
  fd = UniqueFd(mkostemp(name.data(), O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "temporary file in " + folder.string());
  unlink(name.c_str());
  return fd;
}

// SHA-256 of each page of `level`, packed: the level above.
std::string PageDigests(std::string_view level) {
  std::string digests;
  for (size_t at = 0; at < level.size(); at += kPageSize)
    digests += AsText(oci::Digest::Of(AsBytes(level.substr(at, kPageSize))).raw());
  return digests;
}

// The levels above level 0, whose page digests are `digests`, and the root.
struct Upper {
  std::vector<std::string> levels;
  oci::Digest root;
};
Upper UpperLevels(std::string digests) {
  Upper upper;
  while (digests.size() > kDigestSize) {
    upper.levels.push_back(std::move(digests));
    digests = PageDigests(upper.levels.back());
  }
  oci::Digest::Raw root{};
  std::memcpy(root.data(), digests.data(), digests.size());
  upper.root = oci::Digest(root);
  return upper;
}

}  // namespace

// Level 0 of one table: whole pages in the file, the rest in memory.
class IndexWriter::Spool {
 public:
  Spool(std::filesystem::path folder, size_t memory_limit)
      : folder_(std::move(folder)), limit_(AlignUp(memory_limit, kPageSize)) {}

  absl::Status Append(ByteSpan entry) {
    rest_ += AsText(entry);
    if (rest_.size() < limit_) return absl::OkStatus();
    if (!file_.valid()) {
      ASSIGN_OR_RETURN(file_, TemporaryFile(folder_));
    }
    const absl::Status written = WriteAll(file_.get(), AsBytes(rest_));
    if (!written.ok()) return Annotate(written, "temporary file in " + folder_.string());
    in_file_ += rest_.size();
    rest_.clear();
    return absl::OkStatus();
  }

  uint64_t size() const { return in_file_ + rest_.size(); }

  // Sends all entries to `sink`; returns the digests of their pages.
  absl::StatusOr<std::string> Drain(const Sink& sink) {
    std::string digests;
    const FileReader file(std::move(file_), in_file_);
    std::string page(kPageSize, '\0');
    for (uint64_t at = 0; at < in_file_; at += kPageSize) {
      RETURN_IF_ERROR(file.ReadAt(at, std::as_writable_bytes(std::span(page))));
      digests += PageDigests(page);
      RETURN_IF_ERROR(sink(AsBytes(page)));
    }
    digests += PageDigests(rest_);
    RETURN_IF_ERROR(sink(AsBytes(rest_)));
    return digests;
  }

 private:
  const std::filesystem::path folder_;
  const size_t limit_;
  UniqueFd file_;
  uint64_t in_file_ = 0;
  std::string rest_;
};

IndexWriter::IndexWriter(std::filesystem::path folder, size_t memory_limit)
    : blocks_(std::make_unique<Spool>(folder, memory_limit)),
      tags_(std::make_unique<Spool>(folder, memory_limit)) {}
IndexWriter::~IndexWriter() = default;

absl::Status IndexWriter::AppendBlock(const oci::Digest& digest) {
  return blocks_->Append(digest.raw());
}

absl::Status IndexWriter::AppendTag(const Tag& tag) { return tags_->Append(tag); }

absl::StatusOr<IndexHeader> IndexWriter::Finish(IndexHeader header, const Sink& sink) {
  header.block_root = header.tag_root = oci::Digest();
  RETURN_IF_ERROR(IndexHeader::Decode(header.Encode()).status());
  const IndexLayout layout = LayoutOf(header);
  if (blocks_->size() != layout.blocks.entries * kDigestSize ||
      tags_->size() != layout.tags.entries * kTagSize)
    return InvalidArgument("index of {} blocks and {} chunks got {} and {}", layout.blocks.entries,
                           layout.tags.entries, blocks_->size() / kDigestSize,
                           tags_->size() / kTagSize);

  ASSIGN_OR_RETURN(std::string block_pages, blocks_->Drain(sink));
  ASSIGN_OR_RETURN(std::string tag_pages, tags_->Drain(sink));
  const Upper blocks = UpperLevels(std::move(block_pages));
  const Upper tags = UpperLevels(std::move(tag_pages));
  for (const std::string& level : blocks.levels) RETURN_IF_ERROR(sink(AsBytes(level)));
  for (const std::string& level : tags.levels) RETURN_IF_ERROR(sink(AsBytes(level)));
  header.block_root = blocks.root;
  header.tag_root = tags.root;
  RETURN_IF_ERROR(sink(header.Encode()));
  return header;
}

}  // namespace kapsule::archive
