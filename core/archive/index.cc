#include "core/archive/index.h"

#include <algorithm>
#include <bit>
#include <string_view>

#include "core/archive/toc.h"

namespace kapsule::archive {
namespace {

constexpr std::string_view kMagic = "KAPSULE\n";
constexpr uint32_t kVersion = 1;
constexpr uint32_t kEncrypted = 1;  // flag
constexpr uint32_t kMinChunk = 4 << 10, kMaxChunk = 1 << 20, kMaxBlock = 64 << 20;
constexpr uint64_t kCoveredUnit = 64 << 10;

// Offsets of the fields.
constexpr size_t kVersionAt = 8, kFlagsAt = 12, kChunkSizeAt = 16, kBlockSizeAt = 20,
                 kCoveredAt = 24, kTarAt = 32, kTocAt = 40, kTocDigestAt = 48, kSaltAt = 80,
                 kBlockRootAt = 112, kTagRootAt = 144, kCommitmentAt = 176, kReservedAt = 208;

bool AllZero(ByteSpan bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

oci::Digest DigestAt(ByteSpan bytes, size_t at) {
  oci::Digest::Raw raw;
  std::copy_n(bytes.data() + at, raw.size(), raw.data());
  return oci::Digest(raw);
}

absl::Status CheckNumbers(const IndexHeader& header) {
  const auto& h = header;
  if (!std::has_single_bit(h.chunk_size) || h.chunk_size < kMinChunk || h.chunk_size > kMaxChunk)
    return InvalidArgument("index header: chunk size {}", h.chunk_size);
  if (!std::has_single_bit(h.block_size) || h.block_size < h.chunk_size || h.block_size > kMaxBlock)
    return InvalidArgument("index header: block size {}", h.block_size);
  if (h.covered_length == 0 || h.covered_length % kCoveredUnit != 0 ||
      h.covered_length > kMaxCoveredLength)
    return InvalidArgument("index header: covered length {}", h.covered_length);
  if (h.tar_length < 1024 || h.tar_length % 512 != 0 || h.tar_length > h.covered_length)
    return InvalidArgument("index header: tar length {}", h.tar_length);
  if (h.toc_length > kMaxTocBytes || h.toc_length > h.covered_length - h.tar_length)
    return InvalidArgument("index header: toc length {}", h.toc_length);
  return absl::OkStatus();
}

// The shape of a table whose level 0 stands at `offset`; upper levels get their
// offsets later.
Table ShapeOf(uint32_t entry_size, uint64_t entries) {
  Table table{entry_size, entries, {}};
  uint64_t length = entries * entry_size;
  table.levels.push_back({0, length});
  while (length > kPageSize) {
    length = CeilDiv(length, kPageSize) * kDigestSize;
    table.levels.push_back({0, length});
  }
  return table;
}

}  // namespace

std::array<std::byte, kHeaderSize> IndexHeader::Encode() const {
  std::array<std::byte, kHeaderSize> bytes{};
  std::byte* const to = bytes.data();
  std::memcpy(to, kMagic.data(), kMagic.size());
  StoreLe(to + kVersionAt, kVersion);
  StoreLe(to + kFlagsAt, encrypted ? kEncrypted : 0);
  StoreLe(to + kChunkSizeAt, chunk_size);
  StoreLe(to + kBlockSizeAt, block_size);
  StoreLe(to + kCoveredAt, covered_length);
  StoreLe(to + kTarAt, tar_length);
  StoreLe(to + kTocAt, toc_length);
  std::memcpy(to + kTocDigestAt, toc_digest.raw().data(), kDigestSize);
  std::memcpy(to + kSaltAt, salt.data(), salt.size());
  std::memcpy(to + kBlockRootAt, block_root.raw().data(), kDigestSize);
  std::memcpy(to + kTagRootAt, tag_root.raw().data(), kDigestSize);
  std::memcpy(to + kCommitmentAt, commitment.data(), commitment.size());
  return bytes;
}

absl::StatusOr<IndexHeader> IndexHeader::Decode(ByteSpan bytes) {
  if (bytes.size() != kHeaderSize)
    return InvalidArgument("index header: {} bytes instead of {}", bytes.size(), kHeaderSize);
  if (AsText(bytes.first(kMagic.size())) != kMagic)
    return InvalidArgument("index header: no magic number");
  const std::byte* const from = bytes.data();
  const auto version = LoadLe<uint32_t>(from + kVersionAt);
  if (version != kVersion) return Unimplemented("index header: version {}", version);
  const auto flags = LoadLe<uint32_t>(from + kFlagsAt);
  if ((flags & ~kEncrypted) != 0) return InvalidArgument("index header: flags {:#x}", flags);
  if (!AllZero(bytes.subspan(kReservedAt)))
    return InvalidArgument("index header: reserved bytes are not zero");

  IndexHeader header;
  header.encrypted = flags == kEncrypted;
  header.chunk_size = LoadLe<uint32_t>(from + kChunkSizeAt);
  header.block_size = LoadLe<uint32_t>(from + kBlockSizeAt);
  header.covered_length = LoadLe<uint64_t>(from + kCoveredAt);
  header.tar_length = LoadLe<uint64_t>(from + kTarAt);
  header.toc_length = LoadLe<uint64_t>(from + kTocAt);
  header.toc_digest = DigestAt(bytes, kTocDigestAt);
  header.salt = DigestAt(bytes, kSaltAt).raw();
  header.block_root = DigestAt(bytes, kBlockRootAt);
  header.tag_root = DigestAt(bytes, kTagRootAt);
  header.commitment = DigestAt(bytes, kCommitmentAt).raw();
  RETURN_IF_ERROR(CheckNumbers(header));
  if (!header.encrypted &&
      !(AllZero(header.salt) && AllZero(header.tag_root.raw()) && AllZero(header.commitment)))
    return InvalidArgument("index header: salt, tags or commitment without encryption");
  return header;
}

IndexLayout LayoutOf(const IndexHeader& header) {
  IndexLayout layout;
  layout.blocks = ShapeOf(kDigestSize, CeilDiv(header.covered_length, header.block_size));
  if (header.encrypted)
    layout.tags = ShapeOf(kTagSize, CeilDiv(header.covered_length, header.chunk_size));

  uint64_t at = header.covered_length;
  const auto place = [&at](Table& table, size_t first, size_t last) {
    for (size_t level = first; level < std::min(last, table.levels.size()); ++level) {
      table.levels[level].offset = at;
      at += table.levels[level].length;
    }
  };
  place(layout.blocks, 0, 1);
  place(layout.tags, 0, 1);
  place(layout.blocks, 1, layout.blocks.levels.size());
  place(layout.tags, 1, layout.tags.levels.size());
  layout.header_offset = at;
  layout.blob_size = at + kHeaderSize;
  return layout;
}

}  // namespace kapsule::archive
