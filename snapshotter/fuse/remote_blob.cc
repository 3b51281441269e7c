#include "snapshotter/fuse/remote_blob.h"

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
  ~Reading() { blob_.End(*this); }
  const Blocks& blocks() const { return blocks_; }

 private:
  RemoteBlob& blob_;
  const Blocks blocks_;
};

absl::StatusOr<std::shared_ptr<RemoteBlob>> RemoteBlob::Make(const oci::Digest& digest, File file,
                                                             const archive::IndexHeader& header,
                                                             Send send) {
  if (BlockCount(header) > kMaxBlocks)
    return Unimplemented(
        "layer {} has {} blocks of {} bytes, more than the {} that can be read from a registry on "
        "demand: build it with larger blocks",
        digest.text(), BlockCount(header), header.block_size, kMaxBlocks);
  return std::shared_ptr<RemoteBlob>(
      new RemoteBlob(digest, std::move(file), header, std::move(send)));
}

RemoteBlob::RemoteBlob(const oci::Digest& digest, File file, const archive::IndexHeader& header,
                       Send send)
    : digest_(digest),
      size_(file.bytes->size()),
      covered_(header.covered_length),
      block_size_(header.block_size),
      blocks_(BlockCount(header)),
      send_(std::move(send)),
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
  ASSIGN_OR_RETURN(const std::shared_ptr<const ReaderAt> file, Begin(reading));
  return file->ReadAt(offset, out);
}

absl::StatusOr<std::shared_ptr<const ReaderAt>> RemoteBlob::Begin(const Reading& reading) {
  absl::MutexLock lock(&mu_);
  if (local_) return file_.bytes;
  const Blocks& blocks = reading.blocks();
  if (!HasAll(blocks))
    return Unavailable("blocks {} to {} are not all here", blocks.first, blocks.end - 1);
  reading_.push_back(&reading);
  return file_.bytes;
}

// Called by a destructor.
void RemoteBlob::End(const Reading& reading) {
  absl::MutexLock lock(&mu_);
  if (std::erase(reading_, &reading) == 0) return;
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
      waiters_.push_back({blocks, std::move(then), absl::OkStatus()});
      return;
    }
  }
  then(absl::OkStatus());
}

void RemoteBlob::Say(decltype(control::FetchPacket::body) body) {
  send_({digest_, std::move(body)});
}

void RemoteBlob::SayWant(const Blocks& run) {
  for (uint64_t first = run.first; first < run.end; first += control::kMaxFetchBlocks) {
    const uint64_t count = std::min<uint64_t>(run.end - first, control::kMaxFetchBlocks);
    Say(control::FetchWant{first, static_cast<uint32_t>(count)});
  }
}

// Asks for those that are not there and were not asked for. What is about to be
// dropped is asked for after that.
void RemoteBlob::Want(const Blocks& blocks) {
  const auto dropped = [this](uint64_t block) {
    mu_.AssertHeld();
    return std::any_of(drops_.begin(), drops_.end(),
                       [block](const Blocks& drop) { return drop.Contain(block); });
  };
  Blocks run;
  for (uint64_t block = blocks.first; block < blocks.end; ++block) {
    const bool ask = !Has(block) && suspected_.count(block) == 0 && !dropped(block) &&
                     wanted_.insert(block).second;
    if (!ask) continue;
    if (block != run.end) {
      SayWant(run);
      run.first = block;
    }
    run.end = block + 1;
  }
  SayWant(run);
}

void RemoteBlob::WantForWaiters(const Blocks& blocks) {
  for (const Waiter& waiter : waiters_)
    if (waiter.blocks.Overlap(blocks)) Want(waiter.blocks);
}

void RemoteBlob::AnswerDrops() {
  for (size_t i = 0; i < drops_.size();) {
    const Blocks drop = drops_[i];
    if (std::any_of(reading_.begin(), reading_.end(),
                    [&](const Reading* reading) { return reading->blocks().Overlap(drop); })) {
      ++i;
      continue;
    }
    drops_.erase(drops_.begin() + static_cast<ptrdiff_t>(i));
    Say(control::FetchDropped{drop.first, static_cast<uint32_t>(drop.end - drop.first)});
    WantForWaiters(drop);
  }
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

absl::StatusOr<bool> RemoteBlob::UseFile(File file, const archive::IndexHeader& header) {
  if (file.bytes->size() != size_ || header.covered_length != covered_ ||
      header.block_size != block_size_)
    return InvalidArgument("layer {} is open with other blocks", digest_.text());
  absl::MutexLock lock(&mu_);
  if (local_ || file_.id == file.id) return false;
  file_ = std::move(file);
  std::fill(there_.begin(), there_.end(), 0);
  suspected_.clear();
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

// A kapsule-fetch that was restarted does not know which blobs are open, and may have
// removed the file: what it says then is of another one, and there would be holes.
bool RemoteBlob::IsFileGone() const {
  File file;
  {
    absl::MutexLock lock(&mu_);
    file = file_;
  }
  struct stat st;
  return file.fd >= 0 && fstat(file.fd, &st) == 0 && st.st_nlink == 0;
}

void RemoteBlob::Handle(const control::FetchPacket& packet) {
  const auto* const have = std::get_if<control::FetchHave>(&packet.body);
  if (have != nullptr && IsFileGone())
    return Handle({packet.blob, control::FetchFailed{have->first, control::kMaxFetchBlocks,
                                                     Unavailable("its file in the cache was "
                                                                 "removed: it has to be opened "
                                                                 "anew")}});
  Waiters answered;
  {
    absl::MutexLock lock(&mu_);
    answered = std::visit(
        [this](const auto& body) {
          mu_.AssertHeld();
          return On(body);
        },
        packet.body);
  }
  for (const Waiter& waiter : answered) waiter.then(waiter.status);
}

RemoteBlob::Waiters RemoteBlob::TakeReady(const Blocks& changed) {
  Waiters ready;
  for (auto it = waiters_.begin(); it != waiters_.end();) {
    const auto waiter = it++;
    if (waiter->blocks.Overlap(changed) && HasAll(waiter->blocks))
      ready.splice(ready.end(), waiters_, waiter);
  }
  return ready;
}

RemoteBlob::Waiters RemoteBlob::On(const control::FetchHave& have) {
  if (local_) return {};
  const Blocks blocks = Inside(have.first, have.blocks.size());
  const auto is_set = [&](uint64_t block) { return have.blocks.test(block - have.first); };
  // What it says now holds, not what it wanted to do before.
  const size_t void_drops = std::erase_if(drops_, [&](const Blocks& drop) {
    for (uint64_t block = std::max(drop.first, blocks.first);
         block < std::min(drop.end, blocks.end); ++block)
      if (is_set(block)) return true;
    return false;
  });
  for (uint64_t block = blocks.first; block < blocks.end; ++block) {
    // It may not know yet that somebody doubts it.
    if (!is_set(block) || suspected_.count(block) != 0) continue;
    Set(block, true);
    wanted_.erase(block);
  }
  if (void_drops != 0) WantForWaiters({0, blocks_});
  return TakeReady(blocks);
}

RemoteBlob::Waiters RemoteBlob::On(const control::FetchChecked& checked) {
  if (checked.block >= blocks_) return {};
  suspected_.erase(checked.block);
  control::FetchHave have{checked.block, {}};
  have.blocks.set(0);
  return On(have);
}

RemoteBlob::Waiters RemoteBlob::On(const control::FetchFailed& failed) {
  const Blocks blocks = Inside(failed.first, failed.count);
  wanted_.erase(wanted_.lower_bound(blocks.first), wanted_.lower_bound(blocks.end));
  suspected_.erase(suspected_.lower_bound(blocks.first), suspected_.lower_bound(blocks.end));
  Waiters answered;
  for (auto it = waiters_.begin(); it != waiters_.end();) {
    const auto waiter = it++;
    const Blocks common{std::max(waiter->blocks.first, blocks.first),
                        std::min(waiter->blocks.end, blocks.end)};
    uint64_t block = common.first;
    while (block < common.end && Has(block)) ++block;
    if (block >= common.end) continue;
    waiter->status = Annotate(failed.why, fmt::format("block {} did not come", block));
    answered.splice(answered.end(), waiters_, waiter);
  }
  return answered;
}

RemoteBlob::Waiters RemoteBlob::On(const control::FetchDrop& drop) {
  const Blocks blocks = Inside(drop.first, drop.count);
  for (uint64_t block = blocks.first; block < blocks.end; ++block) Set(block, false);
  wanted_.erase(wanted_.lower_bound(blocks.first), wanted_.lower_bound(blocks.end));
  suspected_.erase(suspected_.lower_bound(blocks.first), suspected_.lower_bound(blocks.end));
  // Where there are too many: it is said again after a while.
  if (drops_.size() < kMaxDrops) drops_.push_back({drop.first, drop.first + drop.count});
  AnswerDrops();
  return {};
}

void RemoteBlob::SendAgain() {
  absl::MutexLock lock(&mu_);
  Blocks run;
  for (const uint64_t block : wanted_) {
    if (block != run.end) {
      SayWant(run);
      run.first = block;
    }
    run.end = block + 1;
  }
  SayWant(run);
  for (const uint64_t block : suspected_) Say(control::FetchSuspect{block});
  WantForWaiters({0, blocks_});
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
