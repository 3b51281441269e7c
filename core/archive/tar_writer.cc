#include "core/archive/tar_writer.h"

#include <array>
#include <utility>

namespace kapsule::archive {
namespace {

constexpr std::array<std::byte, kTarBlock> kZeroBlock{};

}  // namespace

struct TarWriter::OpenFile {
  TocEntry entry;
  uint64_t missing;  // bytes still to come
  oci::Hasher hasher;
};

TarWriter::TarWriter(Sink sink) : sink_(std::move(sink)) {}
TarWriter::~TarWriter() = default;

absl::Status TarWriter::Emit(ByteSpan bytes) {
  written_ += bytes.size();
  return sink_(bytes);
}

absl::Status TarWriter::Add(TocEntry entry) {
  if (file_ || entry.type == EntryType::kFile)
    return FailedPrecondition("tar member {}: a file is begun, and ended, by calls of its own",
                              entry.path);
  ASSIGN_OR_RETURN(const std::string header, layout_.Place(entry));
  toc_.entries.push_back(std::move(entry));
  return Emit(AsBytes(header));
}

absl::Status TarWriter::BeginFile(TocEntry entry) {
  if (file_ || entry.type != EntryType::kFile)
    return FailedPrecondition("tar member {}: no file, or the last one has not ended", entry.path);
  ASSIGN_OR_RETURN(const std::string header, layout_.Place(entry));
  const uint64_t size = entry.size;
  file_ = std::make_unique<OpenFile>(OpenFile{std::move(entry), size, oci::Hasher()});
  return Emit(AsBytes(header));
}

absl::Status TarWriter::Count(uint64_t bytes) {
  if (!file_) return FailedPrecondition("tar data outside a file");
  if (bytes > file_->missing)
    return FailedPrecondition("{} has more than {} bytes now: it has changed", file_->entry.path,
                              file_->entry.size);
  file_->missing -= bytes;
  return absl::OkStatus();
}

absl::Status TarWriter::Write(ByteSpan bytes) {
  RETURN_IF_ERROR(Count(bytes.size()));
  file_->hasher.Update(bytes);
  return Emit(bytes);
}

absl::Status TarWriter::Pass(uint64_t bytes) {
  RETURN_IF_ERROR(Count(bytes));
  written_ += bytes;
  return absl::OkStatus();
}

absl::StatusOr<oci::Digest> TarWriter::EndFile() {
  if (!file_) return FailedPrecondition("no tar member to end");
  return EndFile(file_->hasher.Finish());
}

absl::StatusOr<oci::Digest> TarWriter::EndFile(const oci::Digest& digest) {
  if (!file_) return FailedPrecondition("no tar member to end");
  const std::unique_ptr<OpenFile> file = std::move(file_);
  TocEntry& entry = file->entry;
  if (file->missing != 0)
    return FailedPrecondition("{} has {} bytes less now: it has changed", entry.path,
                              file->missing);
  if (entry.digest != oci::Digest() && entry.digest != digest)
    return FailedPrecondition("{} has other bytes now: it has changed", entry.path);
  entry.digest = digest;
  const uint64_t pad = AlignUp(entry.size, kTarBlock) - entry.size;
  toc_.entries.push_back(std::move(entry));
  RETURN_IF_ERROR(Emit(ByteSpan(kZeroBlock).first(pad)));
  return digest;
}

absl::StatusOr<Toc> TarWriter::Finish() {
  if (file_) return FailedPrecondition("{} has not ended", file_->entry.path);
  RETURN_IF_ERROR(Emit(kZeroBlock));
  RETURN_IF_ERROR(Emit(kZeroBlock));
  SortToc(toc_);
  RETURN_IF_ERROR(CheckToc(toc_, written_));
  return std::move(toc_);
}

}  // namespace kapsule::archive
