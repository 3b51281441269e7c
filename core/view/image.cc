#include "core/view/image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "core/view/view.h"

namespace kapsule::view {
namespace {

constexpr std::string_view kMagic = "KAPSVIEW";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderSize = 64;
constexpr uint32_t kSealFiles = 1;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

absl::Status ReadAll(int fd, uint64_t offset, MutableByteSpan out) {
  while (!out.empty()) {
    const ssize_t n = pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoStatus(n < 0 ? errno : EIO, "read a view's image");
    offset += static_cast<size_t>(n);
    out = out.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

std::vector<uint64_t> FileEnds(const archive::Toc& toc, uint32_t block_size) {
  std::vector<uint64_t> ends;
  for (const archive::TocEntry& entry : toc.entries)
    if (entry.size % block_size != 0) ends.push_back(entry.offset + entry.size);
  std::sort(ends.begin(), ends.end());
  return ends;
}

absl::Status NotAnImage(std::string_view what) {
  return InvalidArgument("the passed file is no image of a view: {}", what);
}

}  // namespace

uint64_t Image::Layout::ends_offset() const { return AlignUp(kHeaderSize + metadata_stored, 8); }

std::string Image::EncodeLayout(const Layout& layout) {
  std::string header(kHeaderSize, '\0');
  kMagic.copy(header.data(), kMagic.size());
  StoreLe(header.data() + 8, kVersion);
  StoreLe(header.data() + 12, layout.block_size);
  StoreLe(header.data() + 16, layout.metadata_size);
  StoreLe(header.data() + 24, layout.metadata_stored);
  StoreLe(header.data() + 32, layout.tar_length);
  StoreLe(header.data() + 40, layout.ends);
  StoreLe<uint64_t>(header.data() + 48, kHeaderSize);
  StoreLe(header.data() + 56,
          static_cast<uint32_t>(layout.ends_offset() - kHeaderSize - layout.metadata_stored));
  StoreLe<uint32_t>(header.data() + 60, layout.seal_files ? kSealFiles : 0);
  return header;
}

absl::StatusOr<std::unique_ptr<Image>> Image::Make(const archive::Toc& toc, uint64_t tar_length,
                                                   bool seal_files) {
  ASSIGN_OR_RETURN(Metadata metadata, BuildMetadata(toc, tar_length, {.seal_files = seal_files}));
  const std::vector<uint64_t> ends = FileEnds(toc, metadata.block_size);
  Layout layout;
  layout.block_size = metadata.block_size;
  layout.seal_files = seal_files;
  layout.metadata_size = metadata.bytes.size();
  layout.metadata_stored = metadata.bytes.find_last_not_of('\0') + 1;
  layout.tar_length = tar_length;
  layout.ends = ends.size();

  UniqueFd fd(memfd_create("view", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ErrnoStatus(errno, "memfd_create");
  RETURN_IF_ERROR(WriteAll(fd.get(), AsBytes(EncodeLayout(layout))));
  metadata.bytes.resize(layout.ends_offset() - kHeaderSize);
  RETURN_IF_ERROR(WriteAll(fd.get(), AsBytes(metadata.bytes)));
  RETURN_IF_ERROR(WriteAll(fd.get(), std::as_bytes(std::span(ends))));
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0)
    return ErrnoStatus(errno, "seal a view's image");
  return Adopt(std::move(fd));
}

absl::StatusOr<Image::Layout> Image::ReadLayout(int fd) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) return NotAnImage("not a sealed memory file");
  struct stat st;
  if (fstat(fd, &st) != 0) return ErrnoStatus(errno, "stat a view's image");
  if (static_cast<uint64_t>(st.st_size) < kHeaderSize) return NotAnImage("too short");
  std::array<std::byte, kHeaderSize> header;
  RETURN_IF_ERROR(ReadAll(fd, 0, header));
  if (AsText(header).substr(0, kMagic.size()) != kMagic) return NotAnImage("its magic");
  const auto version = LoadLe<uint32_t>(header.data() + 8);
  if (version != kVersion)
    return Unimplemented("an image of a view has version {}, this program knows version {}",
                         version, kVersion);
  Layout layout;
  layout.block_size = LoadLe<uint32_t>(header.data() + 12);
  layout.metadata_size = LoadLe<uint64_t>(header.data() + 16);
  layout.metadata_stored = LoadLe<uint64_t>(header.data() + 24);
  layout.tar_length = LoadLe<uint64_t>(header.data() + 32);
  layout.ends = LoadLe<uint64_t>(header.data() + 40);
  layout.seal_files = (LoadLe<uint32_t>(header.data() + 60) & kSealFiles) != 0;
  if (layout.block_size != 512 && layout.block_size != 4096) return NotAnImage("its block size");
  if (layout.metadata_size == 0 || layout.metadata_size % 65536 != 0 ||
      layout.metadata_size > kMaxMetadata || layout.metadata_stored > layout.metadata_size)
    return NotAnImage("the size of its metadata");
  if (layout.tar_length > archive::kMaxTarLength) return NotAnImage("the length of its tar");
  if (layout.ends > archive::kMaxTocEntries) return NotAnImage("its number of files");
  // The offsets and flags that remain follow from these numbers.
  if (AsText(header) != EncodeLayout(layout)) return NotAnImage("its offsets or flags");
  if (static_cast<uint64_t>(st.st_size) != layout.file_size()) return NotAnImage("its size");
  return layout;
}

absl::StatusOr<std::unique_ptr<Image>> Image::Adopt(UniqueFd fd) {
  ASSIGN_OR_RETURN(const Layout layout, ReadLayout(fd.get()));
  std::unique_ptr<Image> image(new Image(std::move(fd), layout));
  RETURN_IF_ERROR(image->ScanEnds());
  return image;
}

absl::Status Image::ReadEnds(uint64_t first, std::span<uint64_t> ends) const {
  return ReadAll(fd_.get(), layout_.ends_offset() + first * sizeof(uint64_t),
                 std::as_writable_bytes(ends));
}

absl::Status Image::ScanEnds() {
  window_starts_.reserve(CeilDiv(layout_.ends, kWindow));
  std::array<uint64_t, kWindow> window;
  uint64_t last = 0;
  for (uint64_t first = 0; first < layout_.ends; first += kWindow) {
    const std::span ends(window.data(), std::min<uint64_t>(kWindow, layout_.ends - first));
    RETURN_IF_ERROR(ReadEnds(first, ends));
    window_starts_.push_back(ends[0]);
    for (const uint64_t end : ends) {
      if (end <= last || end > layout_.tar_length || end % layout_.block_size == 0)
        return NotAnImage("its file ends");
      last = end;
    }
  }
  return absl::OkStatus();
}

absl::Status Image::ReadMetadata(uint64_t offset, MutableByteSpan out) const {
  if (offset > layout_.metadata_size || out.size() > layout_.metadata_size - offset)
    return absl::OutOfRangeError(fmt::format("{} bytes at byte {} of {} bytes of metadata",
                                             out.size(), offset, layout_.metadata_size));
  const uint64_t stored = layout_.metadata_stored - std::min(offset, layout_.metadata_stored);
  const size_t n = std::min<uint64_t>(out.size(), stored);
  std::fill(out.begin() + n, out.end(), std::byte{0});
  return ReadAll(fd_.get(), kHeaderSize + offset, out.first(n));
}

absl::Status Image::ClearGaps(uint64_t tar_offset, MutableByteSpan out) const {
  const uint64_t block = layout_.block_size, end = tar_offset + out.size();
  // The first file end that may matter, and the window before the first that
  // begins beyond it.
  const uint64_t after = AlignDown(tar_offset, block);
  auto start = std::upper_bound(window_starts_.begin(), window_starts_.end(), after);
  if (start != window_starts_.begin()) --start;
  std::array<uint64_t, kWindow> window;
  for (; start != window_starts_.end() && *start < end; ++start) {
    const uint64_t first = static_cast<uint64_t>(start - window_starts_.begin()) * kWindow;
    const std::span ends(window.data(), std::min<uint64_t>(kWindow, layout_.ends - first));
    RETURN_IF_ERROR(ReadEnds(first, ends));
    for (auto it = std::upper_bound(ends.begin(), ends.end(), after); it != ends.end() && *it < end;
         ++it) {
      const uint64_t from = std::max(*it, tar_offset), to = std::min(AlignUp(*it, block), end);
      std::fill(out.begin() + (from - tar_offset), out.begin() + (to - tar_offset), std::byte{0});
    }
  }
  return absl::OkStatus();
}

}  // namespace kapsule::view
