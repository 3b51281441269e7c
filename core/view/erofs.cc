#include <sys/stat.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/view/erofs_format.h"
#include "core/view/view.h"

namespace kapsule::view {
namespace {

using archive::EntryType;
using archive::TocEntry;

// The tar begins on a multiple of this, so that chunks and blocks line up.
constexpr uint64_t kDataAlignment = 64 << 10;
constexpr uint64_t kViewAlignment = 4096;
constexpr uint32_t kNobody = 0xFFFFFFFF;
constexpr uint32_t kRoot = 0;  // node of the root directory
constexpr uint64_t kInodesAt = erofs::kSuperblockOffset + sizeof(erofs::Superblock);
static_assert(kInodesAt % erofs::kNidUnit == 0);

struct Child {
  std::string_view name;
  uint32_t node;
};

// One inode.
struct Node {
  const TocEntry* entry;
  uint32_t parent = kRoot;
  uint32_t nlink = 1;
  uint64_t at = 0;                // of the inode in the metadata
  uint64_t size = 0;              // of its data
  uint64_t tail = 0;              // bytes of that behind the inode
  uint64_t block = 0;             // where a directory or symlink has the rest
  std::vector<Child> children{};  // of a directory: sorted, "." and ".." included
};

uint64_t NidOf(const Node& node) { return node.at / erofs::kNidUnit; }

uint8_t FileType(EntryType type) {
  if (type == EntryType::kDirectory) return erofs::kTypeDirectory;
  return type == EntryType::kSymlink ? erofs::kTypeSymlink : erofs::kTypeFile;
}

uint16_t ModeBits(EntryType type) {
  if (type == EntryType::kDirectory) return S_IFDIR;
  return type == EntryType::kSymlink ? S_IFLNK : S_IFREG;
}

// Calls visit(children of the block, bytes used) for each block of a directory.
template <typename Visit>
void ForEachBlock(std::span<const Child> children, uint32_t block_size, const Visit& visit) {
  while (!children.empty()) {
    size_t count = 0, used = 0;
    while (count < children.size()) {
      const size_t more = sizeof(erofs::Dirent) + children[count].name.size();
      if (used + more > block_size) break;
      used += more;
      ++count;
    }
    visit(children.first(count), used);
    children = children.subspan(count);
  }
}

uint64_t DirectorySize(const Node& node, uint32_t block_size) {
  uint64_t blocks = 0, last = 0;
  ForEachBlock(node.children, block_size, [&](std::span<const Child>, size_t used) {
    ++blocks;
    last = used;
  });
  return (blocks - 1) * block_size + last;
}

class Builder {
 public:
  Builder(const archive::Toc& toc, uint64_t tar_length, const MetadataOptions& options)
      : toc_(toc), tar_length_(tar_length), options_(options), root_(archive::DirectoryEntry("")) {
    for (const TocEntry& entry : toc.entries)
      if (entry.size != 0 && entry.offset % 4096 != 0) block_size_ = 512;
  }

  absl::StatusOr<Metadata> Build() {
    MakeNodes();
    LinkChildren();
    RETURN_IF_ERROR(Place());
    bytes_.resize(data_start_);
    WriteSuperblock();
    for (uint32_t i = 0; i < nodes_.size(); ++i) WriteNode(i);
    return Metadata{std::move(bytes_), block_size_};
  }

 private:
  // A node for the root and each entry that is no second name.
  void MakeNodes() {
    nodes_.reserve(toc_.entries.size() + 1);
    node_of_.reserve(toc_.entries.size());
    if (toc_.entries.empty() || !toc_.entries[0].path.empty()) nodes_.push_back({&root_});
    for (const TocEntry& entry : toc_.entries) {
      node_of_.push_back(static_cast<uint32_t>(nodes_.size()));
      if (entry.type != EntryType::kHardLink) nodes_.push_back({&entry});
    }
  }

  // Of a path that the checked TOC has, but for hard links and the root.
  uint32_t NodeOf(std::string_view path) const {
    return path.empty() ? kRoot : node_of_[FindEntry(toc_, path) - toc_.entries.data()];
  }

  void LinkChildren() {
    uint32_t parent = kRoot;  // siblings mostly stand together
    for (size_t i = 0; i < toc_.entries.size(); ++i) {
      const TocEntry& entry = toc_.entries[i];
      if (entry.path.empty()) continue;
      const bool second_name = entry.type == EntryType::kHardLink;
      const uint32_t child = second_name ? NodeOf(entry.link_target) : node_of_[i];
      const std::string_view parent_path = archive::ParentOf(entry.path);
      if (nodes_[parent].entry->path != parent_path) parent = NodeOf(parent_path);
      nodes_[parent].children.push_back({archive::NameOf(entry.path), child});
      if (second_name) ++nodes_[child].nlink;
      if (entry.type == EntryType::kDirectory) {
        nodes_[child].parent = parent;
        ++nodes_[parent].nlink;  // its ".."
      }
    }
    for (uint32_t i = 0; i < nodes_.size(); ++i)
      if (nodes_[i].entry->type == EntryType::kDirectory) AddDots(i);
  }

  void AddDots(uint32_t directory) {
    Node& node = nodes_[directory];
    ++node.nlink;  // its "."
    node.children.push_back({".", directory});
    node.children.push_back({"..", node.parent});
    std::sort(node.children.begin(), node.children.end(),
              [](const Child& a, const Child& b) { return a.name < b.name; });
  }

  // Inodes with their tails, then the other blocks of directories and symlinks.
  absl::Status Place() {
    uint64_t at = kInodesAt;
    for (Node& node : nodes_) {
      node.size = SizeOf(*node.entry, node);
      node.tail = TailOf(node);
      const uint64_t length = sizeof(erofs::Inode) + node.tail;
      if (at % block_size_ + length > block_size_) at = AlignUp(at, block_size_);
      node.at = at;
      at = AlignUp(at + length, erofs::kNidUnit);
    }
    at = AlignUp(at, block_size_);
    for (Node& node : nodes_) {
      if (node.entry->type == EntryType::kFile) continue;
      node.block = at;
      at = AlignUp(at + node.size - node.tail, block_size_);
    }
    data_start_ = AlignUp(at, kDataAlignment);
    if (data_start_ > kMaxMetadata)
      return ResourceExhausted("view of {} entries needs {} bytes of metadata, more than {}",
                               toc_.entries.size(), data_start_, kMaxMetadata);
    blocks_ = (data_start_ + AlignUp(tar_length_, kViewAlignment)) / block_size_;
    if (blocks_ >= erofs::kNoBlock)
      return ResourceExhausted("view of {} blocks of {} bytes: more than 32 bits address", blocks_,
                               block_size_);
    return absl::OkStatus();
  }

  // What of a node's data fits behind its inode.
  uint64_t TailOf(const Node& node) const {
    if (node.entry->type == EntryType::kFile) return 0;
    const uint64_t tail = node.size % block_size_;
    return tail + sizeof(erofs::Inode) <= block_size_ ? tail : 0;
  }

  uint64_t SizeOf(const TocEntry& entry, const Node& node) const {
    if (entry.type == EntryType::kDirectory) return DirectorySize(node, block_size_);
    return entry.type == EntryType::kSymlink ? entry.link_target.size() : entry.size;
  }

  void WriteSuperblock() {
    erofs::Superblock super;
    super.block_size_bits = block_size_ == 4096 ? 12 : 9;
    super.root_nid = static_cast<uint16_t>(NidOf(nodes_[kRoot]));
    super.inodes = nodes_.size();
    super.blocks = static_cast<uint32_t>(blocks_);
    std::memcpy(super.volume_name, "kapsule", 7);
    Put(erofs::kSuperblockOffset, &super, sizeof(super));
  }

  void WriteNode(uint32_t index) {
    const Node& node = nodes_[index];
    const erofs::Inode inode = MakeInode(node, index + 1);
    Put(node.at, &inode, sizeof(inode));
    if (node.entry->type == EntryType::kDirectory) WriteDirectory(node);
    if (node.entry->type == EntryType::kSymlink) WriteSymlink(node);
  }

  void WriteSymlink(const Node& node) {
    const std::string& target = node.entry->link_target;
    const uint64_t in_blocks = node.size - node.tail;
    Put(node.block, target.data(), in_blocks);
    Put(node.at + sizeof(erofs::Inode), target.data() + in_blocks, node.tail);
  }

  erofs::Inode MakeInode(const Node& node, uint32_t number) const {
    const TocEntry& entry = *node.entry;
    const bool is_file = entry.type == EntryType::kFile;
    const bool sealed = is_file && options_.seal_files;
    erofs::Inode inode;
    inode.mode = ModeBits(entry.type) |
                 static_cast<uint16_t>(sealed ? 0444 | (entry.mode & 0111) : entry.mode);
    inode.size = node.size;
    if (node.tail != 0) inode.format = erofs::kExtendedInline;
    const uint64_t data = is_file ? data_start_ + entry.offset : node.block;
    if (node.size != node.tail) inode.start_block = static_cast<uint32_t>(data / block_size_);
    inode.number = number;
    inode.uid = sealed ? kNobody : entry.uid;
    inode.gid = sealed ? kNobody : entry.gid;
    inode.mtime = static_cast<uint64_t>(entry.mtime);
    inode.nlink = node.nlink;
    return inode;
  }

  void WriteDirectory(const Node& node) {
    uint64_t block = node.block;
    const uint64_t blocks_end = node.block + node.size - node.tail;
    ForEachBlock(node.children, block_size_, [&](std::span<const Child> children, size_t) {
      if (block == blocks_end) block = node.at + sizeof(erofs::Inode);
      uint64_t name_at = children.size() * sizeof(erofs::Dirent);
      for (size_t i = 0; i < children.size(); ++i) {
        const Child& child = children[i];
        const erofs::Dirent dirent{NidOf(nodes_[child.node]), static_cast<uint16_t>(name_at),
                                   FileType(nodes_[child.node].entry->type), 0};
        Put(block + i * sizeof(dirent), &dirent, sizeof(dirent));
        Put(block + name_at, child.name.data(), child.name.size());
        name_at += child.name.size();
      }
      block += block_size_;
    });
  }

  void Put(uint64_t at, const void* from, size_t size) {
    std::memcpy(bytes_.data() + at, from, size);
  }

  const archive::Toc& toc_;
  const uint64_t tar_length_;
  const MetadataOptions options_;
  const TocEntry root_;  // where the TOC has none
  uint32_t block_size_ = 4096;
  std::vector<Node> nodes_;
  std::vector<uint32_t> node_of_;  // by entry; means nothing of a hard link
  uint64_t data_start_ = 0;
  uint64_t blocks_ = 0;
  std::string bytes_;
};

}  // namespace

absl::StatusOr<Metadata> BuildMetadata(const archive::Toc& toc, uint64_t tar_length,
                                       const MetadataOptions& options) {
  return Builder(toc, tar_length, options).Build();
}

}  // namespace kapsule::view
