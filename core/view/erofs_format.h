// EROFS on disk, as far as a view uses it: uncompressed, extended inodes, plain
// or inline layout. From the Linux kernel, fs/erofs/erofs_fs.h; all little-endian.
#pragma once

#include <cstdint>

namespace kapsule::view::erofs {

inline constexpr uint64_t kSuperblockOffset = 1024;
inline constexpr uint32_t kMagic = 0xE0F5E1E2;
inline constexpr uint32_t kNoBlock = 0xFFFFFFFF;  // start block of an empty file

struct Superblock {
  uint32_t magic = kMagic;
  uint32_t checksum = 0;  // not used: feature_compat bit 0 is off
  uint32_t feature_compat = 0;
  uint8_t block_size_bits = 0;
  uint8_t extension_slots = 0;
  uint16_t root_nid = 0;
  uint64_t inodes = 0;
  uint64_t build_time = 0;
  uint32_t build_time_nsec = 0;
  uint32_t blocks = 0;
  uint32_t meta_block = 0;  // nids count from here
  uint32_t xattr_block = 0;
  uint8_t uuid[16] = {};
  char volume_name[16] = {};
  uint32_t feature_incompat = 0;
  uint16_t compression = 0;
  uint16_t extra_devices = 0;
  uint16_t device_slots = 0;
  uint8_t directory_block_bits = 0;  // directory block = block
  uint8_t xattr_prefixes = 0;
  uint32_t xattr_prefix_start = 0;
  uint64_t packed_nid = 0;
  uint8_t reserved[24] = {};
};
static_assert(sizeof(Superblock) == 128);

// nid = byte offset / kNidUnit. An inode, with its tail, must not cross a block.
inline constexpr uint64_t kNidUnit = 32;

// i_format: bit 0 the version (1: extended), then the layout. Plain (0): all data
// is in blocks from start_block on. Inline (2): the last, short block of it, its
// tail, stands behind the inode instead.
inline constexpr uint16_t kExtendedPlain = 1, kExtendedInline = 1 | 2 << 1;

struct Inode {
  uint16_t format = kExtendedPlain;
  uint16_t xattr_count = 0;
  uint16_t mode = 0;
  uint16_t reserved = 0;
  uint64_t size = 0;
  uint32_t start_block = kNoBlock;
  uint32_t number = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint64_t mtime = 0;
  uint32_t mtime_nsec = 0;
  uint32_t nlink = 0;
  uint8_t reserved2[16] = {};
};
static_assert(sizeof(Inode) == 64);

// A directory block: entries, then their names in the same order. The first
// name's offset tells the number of entries; the last name ends at the first
// NUL or at the directory's end. Names are sorted over the whole directory.
struct __attribute__((packed)) Dirent {
  uint64_t nid;
  uint16_t name_offset;  // in the block
  uint8_t file_type;
  uint8_t reserved;
};
static_assert(sizeof(Dirent) == 12);

inline constexpr uint8_t kTypeFile = 1, kTypeDirectory = 2, kTypeSymlink = 7;

}  // namespace kapsule::view::erofs
