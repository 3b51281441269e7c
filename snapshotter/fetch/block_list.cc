#include "snapshotter/fetch/block_list.h"

#include <algorithm>

namespace kapsule::fetch {
namespace {

constexpr std::string_view kMagic = "KAPBLKS\n";
constexpr uint32_t kVersion = 1;
constexpr size_t kVersionAt = 8, kBlockSizeAt = 12, kBlobSizeAt = 16, kInodeAt = 24, kCountAt = 32,
                 kRootAt = 40, kBitsAt = 72, kDigestBytes = 32;

oci::Digest DigestAt(ByteSpan bytes, size_t at) {
  oci::Digest::Raw raw;
  std::copy_n(bytes.data() + at, raw.size(), raw.data());
  return oci::Digest(raw);
}

}  // namespace

Bytes BlockList::Encode() const {
  const ByteSpan bits = blocks.bytes();
  const size_t end = kBitsAt + bits.size();
  Bytes out(end + kDigestBytes);
  std::memcpy(out.data(), kMagic.data(), kMagic.size());
  StoreLe(out.data() + kVersionAt, kVersion);
  StoreLe(out.data() + kBlockSizeAt, block_size);
  StoreLe(out.data() + kBlobSizeAt, blob_size);
  StoreLe(out.data() + kInodeAt, inode);
  StoreLe(out.data() + kCountAt, blocks.size());
  std::memcpy(out.data() + kRootAt, root.raw().data(), kDigestBytes);
  std::copy(bits.begin(), bits.end(), out.data() + kBitsAt);
  const oci::Digest digest = oci::Digest::Of(ByteSpan(out).first(end));
  std::memcpy(out.data() + end, digest.raw().data(), kDigestBytes);
  return out;
}

absl::StatusOr<BlockList> BlockList::Decode(ByteSpan bytes) {
  if (bytes.size() < kBitsAt + kDigestBytes || AsText(bytes.first(kMagic.size())) != kMagic)
    return InvalidArgument("{} bytes that are no list of blocks", bytes.size());
  const size_t end = bytes.size() - kDigestBytes;
  if (oci::Digest::Of(bytes.first(end)) != DigestAt(bytes, end))
    return InvalidArgument("a list of blocks that is damaged");
  if (LoadLe<uint32_t>(bytes.data() + kVersionAt) != kVersion)
    return InvalidArgument("a list of blocks of another version");
  const auto count = LoadLe<uint64_t>(bytes.data() + kCountAt);
  if (count > kMaxBlocks) return InvalidArgument("a list of {} blocks", count);
  BlockList list;
  list.block_size = LoadLe<uint32_t>(bytes.data() + kBlockSizeAt);
  list.blob_size = LoadLe<uint64_t>(bytes.data() + kBlobSizeAt);
  list.inode = LoadLe<uint64_t>(bytes.data() + kInodeAt);
  list.root = DigestAt(bytes, kRootAt);
  ASSIGN_OR_RETURN(list.blocks, BlockSet::FromBytes(bytes.subspan(kBitsAt, end - kBitsAt), count));
  return list;
}

}  // namespace kapsule::fetch
