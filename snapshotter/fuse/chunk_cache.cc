#include "snapshotter/fuse/chunk_cache.h"

#include <algorithm>
#include <bit>

namespace kapsule::fuse {

struct ChunkCache::Frame {
  std::byte* data = nullptr;
  Region* region = nullptr;
  Key key;
  bool kept = false;
  unsigned pins = 0;
  std::list<Frame*>::iterator position;  // in its class
};

struct ChunkCache::Region {
  std::byte* data = nullptr;
  size_t index = kClasses;    // of its class; kClasses: free
  std::vector<Frame> frames;  // does not grow after Assign()
  unsigned pins = 0;          // of all its frames
  uint64_t last_use = 0;

  size_t chunk_size() const { return kMinChunk << index; }
};

ChunkCache::Pin::~Pin() {
  if (frame_ != nullptr) cache_->Unpin(*frame_);
}

MutableByteSpan ChunkCache::Pin::bytes() const {
  return {frame_->data, frame_->region->chunk_size()};
}

absl::StatusOr<std::unique_ptr<ChunkCache>> ChunkCache::Make(size_t limit) {
  const size_t regions = limit / kRegionSize;
  ASSIGN_OR_RETURN(HugeMemory memory, HugeMemory::Make(regions * kRegionSize));
  return std::unique_ptr<ChunkCache>(new ChunkCache(std::move(memory), regions));
}

ChunkCache::ChunkCache(HugeMemory memory, size_t regions)
    : memory_(std::move(memory)), regions_(regions) {
  for (size_t i = 0; i < regions; ++i) regions_[i].data = memory_.bytes().data() + i * kRegionSize;
}

ChunkCache::~ChunkCache() = default;

ChunkCache::Pin ChunkCache::Find(uint64_t layer, uint64_t chunk) {
  const absl::MutexLock lock(&mu_);
  const auto found = kept_.find({layer, chunk});
  if (found == kept_.end()) return {};
  Frame& frame = *found->second;
  std::list<Frame*>& frames = classes_[frame.region->index].frames;
  frames.splice(frames.begin(), frames, frame.position);
  frame.region->last_use = ++uses_;
  ++frame.region->pins;
  ++frame.pins;
  return Pin(this, &frame);
}

ChunkCache::Pin ChunkCache::Allocate(size_t chunk_size) {
  const size_t index = static_cast<size_t>(std::countr_zero(chunk_size / kMinChunk));
  const absl::MutexLock lock(&mu_);
  Class& mine = classes_[index];
  Frame* frame = Reusable(mine);
  if (frame == nullptr || frame->kept) {  // none is free: more memory, or the oldest
    if (Region* region = RegionFor(index, frame == nullptr)) {
      Assign(*region, index);
      frame = &region->frames.front();
    }
  }
  if (frame == nullptr) return {};
  Withdraw(*frame);
  frame->pins = 1;
  ++frame->region->pins;
  frame->region->last_use = ++uses_;
  mine.frames.splice(mine.frames.begin(), mine.frames, frame->position);
  return Pin(this, frame);
}

void ChunkCache::Keep(const Pin& pin, uint64_t layer, uint64_t chunk) {
  const absl::MutexLock lock(&mu_);
  Frame& frame = *pin.frame_;
  if (frame.kept || !kept_.emplace(Key{layer, chunk}, &frame).second) return;
  frame.key = {layer, chunk};
  frame.kept = true;
}

// A frame that holds nothing goes to the end, where the next one is taken from.
void ChunkCache::Unpin(Frame& frame) {
  const absl::MutexLock lock(&mu_);
  --frame.region->pins;
  if (--frame.pins != 0 || frame.kept) return;
  std::list<Frame*>& frames = classes_[frame.region->index].frames;
  frames.splice(frames.end(), frames, frame.position);
}

// The last frame that nobody reads: pins are as many as there are threads, so few
// are passed over.
ChunkCache::Frame* ChunkCache::Reusable(Class& of) {
  for (auto it = of.frames.rbegin(); it != of.frames.rend(); ++it)
    if ((*it)->pins == 0) return *it;
  return nullptr;
}

// A free region, or the one of another class that was not used for the longest
// time, where this class has less than its share or nothing else to go on with.
ChunkCache::Region* ChunkCache::RegionFor(size_t index, bool urgent) {
  size_t others = 0;
  for (size_t i = 0; i < kClasses; ++i) others += i != index && classes_[i].regions != 0;
  const size_t share = regions_.size() / (others + 1);
  Region* best = nullptr;
  for (Region& region : regions_) {
    if (region.index == kClasses) return &region;
    if (region.index == index || region.pins != 0) continue;
    if (best == nullptr || region.last_use < best->last_use) best = &region;
  }
  return urgent || classes_[index].regions < share ? best : nullptr;
}

void ChunkCache::Assign(Region& region, size_t index) {
  for (Frame& frame : region.frames) {
    Withdraw(frame);
    classes_[region.index].frames.erase(frame.position);
  }
  if (region.index != kClasses) --classes_[region.index].regions;
  region.index = index;
  ++classes_[index].regions;
  region.frames = std::vector<Frame>(kRegionSize / region.chunk_size());
  std::list<Frame*>& frames = classes_[index].frames;
  for (size_t i = 0; i < region.frames.size(); ++i) {
    Frame& frame = region.frames[i];
    frame.data = region.data + i * region.chunk_size();
    frame.region = &region;
    frame.position = frames.insert(frames.end(), &frame);
  }
}

// Nobody finds it any more.
void ChunkCache::Withdraw(Frame& frame) {
  if (frame.kept) kept_.erase(frame.key);
  frame.kept = false;
}

}  // namespace kapsule::fuse
