#include "snapshotter/fuse/remote_blob.h"

#include <absl/time/clock.h>
#include <sys/stat.h>

#include <algorithm>
#include <new>
#include <utility>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

uint64_t BlockCount(const archive::IndexHeader& header) {
  return CeilDiv(header.covered_length, header.block_size);
}

}  // namespace

// The blob as its LayerReader sees it.
class RemoteBlob::Reader final : public ReaderAt {
 public:
  explicit Reader(std::shared_ptr<RemoteBlob> blob) : blob_(std::move(blob)) {}
  uint64_t size() const override { return blob_->size_; }
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    return blob_->ReadAt(offset, out);
  }
  bool IsThere(uint64_t offset, size_t size) const override { return blob_->IsThere(offset, size); }
  void WhenThere(uint64_t offset, size_t size, Then then) const override {
    blob_->WhenThere(offset, size, std::move(then));
  }

 private:
  const std::shared_ptr<RemoteBlob> blob_;
};

// A read under way, from Begin() on.
class RemoteBlob::Reading {
 public:
  Reading(RemoteBlob& blob, const Blocks& blocks) : blob_(blob), blocks_(blocks) {}
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;
  ~Reading() { blob_.End(&blocks_); }
  const Blocks* blocks() const { return &blocks_; }

 private:
  RemoteBlob& blob_;
  const Blocks blocks_;
};

absl::StatusOr<std::shared_ptr<RemoteBlob>> RemoteBlob::Make(const oci::Digest& digest, File file,
                                                             const archive::IndexHeader& header,
                                                             Send send, absl::Duration patience) {
  if (BlockCount(header) > kMaxBlocks)
    return Unimplemented(
        "layer {} has {} blocks of {} bytes, more than the {} that can be read from a registry on "
        "demand: build it with larger blocks",
        digest.text(), BlockCount(header), header.block_size, kMaxBlocks);
  return std::shared_ptr<RemoteBlob>(
      new RemoteBlob(digest, std::move(file), header, std::move(send), patience));
}

RemoteBlob::RemoteBlob(const oci::Digest& digest, File file, const archive::IndexHeader& header,
                       Send send, absl::Duration patience)
    : digest_(digest),
      size_(file.bytes->size()),
      covered_(header.covered_length),
      block_size_(header.block_size),
      blocks_(BlockCount(header)),
      send_(std::move(send)),
      patience_(patience),
      file_(std::move(file)),
      there_(CeilDiv(blocks_, 64)) {}

std::unique_ptr<ReaderAt> RemoteBlob::ReaderOf(std::shared_ptr<RemoteBlob> blob) {
  return std::make_unique<Reader>(std::move(blob));
}

RemoteBlob::Blocks RemoteBlob::BlocksOf(uint64_t offset, size_t size) const {
  if (size == 0 || offset >= covered_) return {};
  const uint64_t end = offset + std::min<uint64_t>(size, covered_ - offset);
  return {offset / block_size_, CeilDiv(end, block_size_)};
}

RemoteBlob::Blocks RemoteBlob::Inside(uint64_t first, uint64_t count) const {
  first = std::min(first, blocks_);
  return {first, first + std::min(count, blocks_ - first)};
}

bool RemoteBlob::Has(uint64_t block) const { return (there_[block / 64] >> block % 64 & 1) != 0; }

bool RemoteBlob::HasAll(const Blocks& blocks) const {
  for (uint64_t block = blocks.first; block < blocks.end; ++block)
    if (!Has(block)) return false;
  return true;
}

void RemoteBlob::Set(uint64_t block, bool there) {
  const uint64_t bit = uint64_t{1} << block % 64;
  uint64_t& word = there_[block / 64];
  word = there ? word | bit : word & ~bit;
}

absl::Status RemoteBlob::ReadAt(uint64_t offset, MutableByteSpan out) {
  const Reading reading(*this, BlocksOf(offset, out.size()));
  ASSIGN_OR_RETURN(const std::shared_ptr<const ReaderAt> file, Begin(reading.blocks()));
  return file->ReadAt(offset, out);
}

absl::StatusOr<std::shared_ptr<const ReaderAt>> RemoteBlob::Begin(const Blocks* reading) {
  absl::MutexLock lock(&mu_);
  if (local_) return file_.bytes;
  if (!HasAll(*reading))
    return Unavailable("blocks {} to {} are not all here", reading->first, reading->end - 1);
  reading_.push_back(reading);
  return file_.bytes;
}

// Called by a destructor.
void RemoteBlob::End(const Blocks* reading) {
  absl::MutexLock lock(&mu_);
  if (std::erase(reading_, reading) == 0) return;
  try {
    AnswerDrops();
  } catch (const std::bad_alloc&) {
    log::error("no memory to answer kapsule-fetch, which will ask again");
  }
}

bool RemoteBlob::IsThere(uint64_t offset, size_t size) const {
  absl::MutexLock lock(&mu_);
  return local_ || HasAll(BlocksOf(offset, size));
}

void RemoteBlob::WhenThere(uint64_t offset, size_t size, Then then) {
  {
    absl::MutexLock lock(&mu_);
    const Blocks blocks = BlocksOf(offset, size);
    if (!local_ && !HasAll(blocks)) {
      Want(blocks);
      waiters_.push_back({blocks, std::move(then), absl::Now()});
      return;
    }
  }
  then(absl::OkStatus());
}

void RemoteBlob::Suspect(uint64_t offset, size_t size) {
  absl::MutexLock lock(&mu_);
  if (local_) return;
  const Blocks blocks = BlocksOf(offset, size);
  for (uint64_t block = blocks.first; block < blocks.end; ++block) {
    if (!Has(block)) continue;  // another one was faster, or it was dropped
    suspected_.insert(block);
    Set(block, false);
    Say(control::FetchSuspect{block});
  }
}

absl::Status RemoteBlob::CheckBlocks(const archive::IndexHeader& header) const {
  if (header.covered_length == covered_ && header.block_size == block_size_)
    return absl::OkStatus();
  return InvalidArgument("layer {} is open with other blocks", digest_.text());
}

absl::StatusOr<bool> RemoteBlob::UseFile(File file) {
  if (file.bytes->size() != size_)
    return InvalidArgument("the blob has {} bytes instead of {}", file.bytes->size(), size_);
  const bool gone = IsGone(file);
  absl::MutexLock lock(&mu_);
  if (local_ || gone || file_.id == file.id) return false;
  file_ = std::move(file);
  std::fill(there_.begin(), there_.end(), 0);
  suspected_.clear();
  wanted_.clear();  // answers that came before did not count
  WantForWaiters({0, blocks_});
  return true;
}

absl::Status RemoteBlob::UseLocal(std::shared_ptr<const ReaderAt> file) {
  if (file->size() != size_)
    return InvalidArgument("the blob has {} bytes instead of {}", file->size(), size_);
  Waiters ready;
  {
    absl::MutexLock lock(&mu_);
    file_ = {std::move(file), {}};
    local_ = true;
    wanted_.clear();
    suspected_.clear();
    ready.swap(waiters_);
  }
  for (const Waiter& waiter : ready) waiter.then(absl::OkStatus());
  return absl::OkStatus();
}

bool RemoteBlob::IsGone(const File& file) {
  struct stat st;
  return file.fd >= 0 && fstat(file.fd, &st) == 0 && st.st_nlink == 0;
}

void RemoteBlob::FailWaiting(const absl::Status& why) {
  Waiters failed;
  {
    absl::MutexLock lock(&mu_);
    failed.swap(waiters_);
    wanted_.clear();
    suspected_.clear();
  }
  for (const Waiter& waiter : failed) waiter.then(why);
}

}  // namespace kapsule::fuse
