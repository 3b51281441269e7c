#include "core/view/metadata_walk.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "core/base/bytes.h"

namespace kapsule::view {
namespace {

constexpr uint64_t kSuper = 1024;
enum Kind : uint8_t { kFile = 1, kDirectory = 2, kSymlink = 7 };

struct Inode {
  Kind kind;
  bool inlined = false;
  uint64_t at = 0, size = 0;
  uint64_t data = 0;  // of its blocks
  uint64_t tail = 0;  // bytes behind the inode
  uint32_t nlink = 0;

  uint64_t in_blocks() const { return size - tail; }
};

// What has been seen of an inode so far.
struct Seen {
  Inode inode;
  uint32_t names = 0;           // that lead to it, "." and ".." apart
  uint32_t subdirectories = 0;  // of a directory
};

class Walker {
 public:
  Walker(std::string_view metadata, uint64_t view_size) : bytes_(metadata), size_(view_size) {}

  absl::StatusOr<WalkResult> Walk() {
    RETURN_IF_ERROR(ReadSuperblock());
    RETURN_IF_ERROR(Meet(root_, kDirectory).status());
    todo_.push_back({root_, root_});
    while (!todo_.empty()) {
      const auto [nid, parent] = todo_.back();
      todo_.pop_back();
      RETURN_IF_ERROR(WalkDirectory(nid, parent));
    }
    return Finish();
  }

 private:
  template <typename T>
  T Load(uint64_t at) const {
    return LoadLe<T>(bytes_.data() + at);
  }

  absl::Status ReadSuperblock() {
    if (bytes_.size() < kSuper + 128 || bytes_.size() % 65536 != 0)
      return DataLoss("metadata of {} bytes", bytes_.size());
    if (Load<uint32_t>(kSuper) != 0xE0F5E1E2) return DataLoss("magic");
    const auto bits = Load<uint8_t>(kSuper + 12);
    if (bits != 9 && bits != 12) return DataLoss("block size bits {}", bits);
    block_ = uint64_t{1} << bits;
    root_ = Load<uint16_t>(kSuper + 14);
    if (Load<uint32_t>(kSuper + 36) * block_ != size_) return DataLoss("number of blocks");
    return absl::OkStatus();
  }

  absl::StatusOr<Inode> ReadInode(uint64_t nid) const {
    if (nid > bytes_.size() / 32 || nid * 32 + 64 > bytes_.size())
      return DataLoss("inode {} outside", nid);
    const uint64_t at = nid * 32;
    if (at < kSuper + 128) return DataLoss("inode {} in the superblock", nid);
    if (at / block_ != (at + 63) / block_) return DataLoss("inode {} crosses a block", nid);
    const auto format = Load<uint16_t>(at);
    if ((format != 1 && format != 5) || Load<uint16_t>(at + 2) != 0)
      return DataLoss("inode format {}", format);
    Inode inode;
    inode.at = at;
    inode.inlined = format == 5;
    switch (Load<uint16_t>(at + 4) >> 12) {
      case 010:
        inode.kind = kFile;
        break;
      case 004:
        inode.kind = kDirectory;
        break;
      case 012:
        inode.kind = kSymlink;
        break;
      default:
        return DataLoss("inode {} has no known type", nid);
    }
    inode.size = Load<uint64_t>(at + 8);
    inode.data = Load<uint32_t>(at + 16) * block_;
    inode.nlink = Load<uint32_t>(at + 44);
    if (inode.size == 0 && (inode.kind != kFile || inode.inlined))
      return DataLoss("inode {} is empty", nid);
    if (inode.inlined) {
      inode.tail = (inode.size - 1) % block_ + 1;  // the last block, be it a whole one
      if (inode.kind == kFile || at / block_ != (at + 63 + inode.tail) / block_)
        return DataLoss("tail of inode {}", nid);
    }
    RETURN_IF_ERROR(CheckBlocks(nid, inode));
    if (inode.kind == kSymlink) {
      const std::string target = Content(inode);
      if (target.size() > 4095 || target.find('\0') != target.npos)
        return DataLoss("target of symlink {}", nid);
    }
    return inode;
  }

  absl::Status CheckBlocks(uint64_t nid, const Inode& inode) const {
    if (inode.in_blocks() == 0) return absl::OkStatus();
    const bool is_file = inode.kind == kFile;
    const uint64_t begin = is_file ? bytes_.size() : kSuper + 128;
    const uint64_t end = is_file ? size_ : bytes_.size();
    if (inode.data < begin || inode.data > end || inode.in_blocks() > end - inode.data)
      return DataLoss("data of inode {} outside", nid);
    return absl::OkStatus();
  }

  // Of a directory or symlink.
  std::string Content(const Inode& inode) const {
    std::string content(bytes_.substr(inode.in_blocks() ? inode.data : 0, inode.in_blocks()));
    return content.append(bytes_.substr(inode.at + 64, inode.tail));
  }

  // A name that leads to `nid`.
  absl::StatusOr<Seen*> Meet(uint64_t nid, uint8_t kind) {
    auto found = seen_.find(nid);
    if (found == seen_.end()) {
      ASSIGN_OR_RETURN(const Inode inode, ReadInode(nid));
      found = seen_.emplace(nid, Seen{inode}).first;
      used_.push_back({inode.at, inode.at + 64 + inode.tail});
      if (inode.kind != kFile && inode.in_blocks() != 0)
        used_.push_back({inode.data, inode.data + inode.in_blocks()});
    }
    if (found->second.inode.kind != kind) return DataLoss("type of inode {} in a directory", nid);
    ++found->second.names;
    return &found->second;
  }

  absl::Status WalkDirectory(uint64_t nid, uint64_t parent) {
    const std::string content = Content(seen_.at(nid).inode);
    std::string previous;
    bool dot = false, dot_dot = false;
    for (uint64_t at = 0; at < content.size(); at += block_) {
      const std::string_view block = std::string_view(content).substr(at, block_);
      RETURN_IF_ERROR(WalkBlock(block, [&](std::string_view name, uint64_t child, uint8_t kind) {
        if (name <= previous) return DataLoss("names of directory {} are unsorted", nid);
        previous = name;
        if (name == "." || name == "..") {
          (name == "." ? dot : dot_dot) = true;
          return child == (name == "." ? nid : parent) && kind == kDirectory
                     ? absl::OkStatus()
                     : DataLoss("{} of directory {}", name, nid);
        }
        return Enter(nid, child, kind);
      }));
    }
    return dot && dot_dot ? absl::OkStatus() : DataLoss("directory {} has no dots", nid);
  }

  absl::Status Enter(uint64_t directory, uint64_t child, uint8_t kind) {
    ++result_.names;
    ASSIGN_OR_RETURN(const Seen* seen, Meet(child, kind));
    if (kind != kDirectory) return absl::OkStatus();
    if (seen->names > 1) return DataLoss("directory {} has two names", child);
    ++seen_.at(directory).subdirectories;
    todo_.push_back({child, directory});
    return absl::OkStatus();
  }

  template <typename Visit>
  absl::Status WalkBlock(std::string_view block, const Visit& visit) const {
    if (block.size() < 12) return DataLoss("directory block of {} bytes", block.size());
    const size_t names = LoadLe<uint16_t>(block.data() + 8);
    if (names == 0 || names % 12 != 0 || names > block.size()) return DataLoss("first name");
    for (size_t at = 0; at < names; at += 12) {
      const size_t begin = LoadLe<uint16_t>(block.data() + at + 8);
      const bool last = at + 12 == names;
      const size_t end = last ? block.size() : LoadLe<uint16_t>(block.data() + at + 20);
      if (begin < names || begin >= end || end > block.size()) return DataLoss("name offset");
      std::string_view name = block.substr(begin, end - begin);
      if (last) name = name.substr(0, name.find('\0'));
      if (name.empty() || name.size() > 255 || name.find('\0') != name.npos ||
          name.find('/') != name.npos)
        return DataLoss("a name is no name");
      RETURN_IF_ERROR(visit(name, LoadLe<uint64_t>(block.data() + at),
                            LoadLe<uint8_t>(block.data() + at + 10)));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<WalkResult> Finish() {
    std::sort(used_.begin(), used_.end());
    for (size_t i = 1; i < used_.size(); ++i)
      if (used_[i].first < used_[i - 1].second)
        return DataLoss("byte {} of the metadata has two uses", used_[i].first);
    for (const auto& [nid, seen] : seen_) {
      const bool directory = seen.inode.kind == kDirectory;
      if (seen.inode.nlink != (directory ? 2 + seen.subdirectories : seen.names))
        return DataLoss("link count of inode {}", nid);
      if (directory) ++result_.directories;
      if (seen.inode.kind == kSymlink) ++result_.symlinks;
      if (seen.inode.kind == kFile) ++result_.files;
    }
    return result_;
  }

  const std::string_view bytes_;
  const uint64_t size_;
  uint64_t block_ = 0, root_ = 0;
  std::map<uint64_t, Seen> seen_;
  std::vector<std::pair<uint64_t, uint64_t>> used_;  // ranges of the metadata
  std::vector<std::pair<uint64_t, uint64_t>> todo_;  // directory and its parent
  WalkResult result_;
};

}  // namespace

absl::StatusOr<WalkResult> WalkMetadata(std::string_view metadata, uint64_t view_size) {
  return Walker(metadata, view_size).Walk();
}

}  // namespace kapsule::view
