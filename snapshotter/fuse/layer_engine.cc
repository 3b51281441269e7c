#include "snapshotter/fuse/layer_engine.h"

#include <algorithm>
#include <array>
#include <new>
#include <system_error>

#include "core/base/log.h"

namespace kapsule::fuse {
namespace {

constexpr uint64_t kBlockSize = BlockPool::kBlockSize;

uint64_t BlockOf(uint64_t offset) { return offset / kBlockSize; }
uint64_t LastBlock(uint64_t offset, size_t size) { return BlockOf(offset + size - 1); }
// Bytes of the range up to the end of its first block.
size_t InFirstBlock(uint64_t offset, size_t size) {
  return std::min<uint64_t>(size, kBlockSize - offset % kBlockSize);
}

absl::Status CheckRange(const blob::LayerReader& layer, uint64_t offset, size_t size) {
  const uint64_t covered = layer.header().covered_length;
  if (offset <= covered && size <= covered - offset) return absl::OkStatus();
  return absl::OutOfRangeError(
      fmt::format("{} bytes at byte {} of a layer of {}", size, offset, covered));
}

bool IsAligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % blob::kDirectUnit == 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LayerEngine>> LayerEngine::Make(const Options& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<BlockPool> blocks, BlockPool::Make(options.read_ahead_bytes));
  ASSIGN_OR_RETURN(std::unique_ptr<ChunkCache> chunks, ChunkCache::Make(options.chunk_cache_bytes));
  return std::unique_ptr<LayerEngine>(
      new LayerEngine(options, std::move(blocks), std::move(chunks)));
}

LayerEngine::LayerEngine(const Options& options, std::unique_ptr<BlockPool> blocks,
                         std::unique_ptr<ChunkCache> chunks)
    : options_(options),
      blocks_(std::move(blocks)),
      chunks_(std::move(chunks)),
      queue_(std::max(options.io_threads / 2, 1u)),
      streams_(kBlockSize, blocks_->slots()) {}

absl::Status LayerEngine::Start() {
  try {
    for (unsigned i = 0; i < options_.io_threads; ++i) threads_.emplace_back([this, i] { Run(i); });
  } catch (const std::system_error& e) {
    return ResourceExhausted("start an I/O thread: {}", e.what());
  }
  return absl::OkStatus();
}

LayerEngine::~LayerEngine() {
  const std::deque<BlockLoad> left = queue_.Stop();
  for (std::thread& thread : threads_) thread.join();
  for (const BlockLoad& load : left) blocks_->Complete(load.pin, false);
}

void LayerEngine::Run(unsigned thread) {
  ReadScratch scratch;
  while (const std::optional<IoQueue::Work> work = queue_.Next()) {
    if (work->read != nullptr) {
      Finish(*work->read, scratch, thread);
      continue;
    }
    Load(*work->load);
    queue_.LoadDone();
  }
}

// Where there is no memory, the thread lives on.
void LayerEngine::Finish(const DeferredRead& read, ReadScratch& scratch, unsigned thread) {
  try {
    read.finish(scratch, thread);
  } catch (const std::bad_alloc&) {
    log::error("no memory to finish a read");
  }
}

// A failure is kept from nobody: those who wait read for themselves then.
void LayerEngine::Load(const BlockLoad& load) {
  absl::Status status;
  try {
    status = Fill(load);
  } catch (const std::bad_alloc&) {
    status = ResourceExhausted("no memory");
  }
  for (const BlockPool::WaiterPtr& waiter : blocks_->Complete(load.pin, status.ok()))
    queue_.AddReady(std::static_pointer_cast<DeferredRead>(waiter));
}

absl::Status LayerEngine::Fill(const BlockLoad& load) {
  const archive::IndexHeader& header = load.layer->header();
  const uint64_t begin = load.number * kBlockSize;
  BlockPool::Block& block = *load.pin;
  block.tags.clear();
  block.verified.Clear();
  if (header.encrypted) {
    const blob::ChunkRange range = blob::ChunksOf(header, begin, block.length);
    block.tags.resize(range.count);
    RETURN_IF_ERROR(load.layer->ReadTags(range.first, block.tags));
  }
  return load.layer->source().ReadAt(begin, block.memory.first(block.length));
}

std::optional<absl::Status> LayerEngine::TryRead(ReadScratch& scratch, const LayerPtr& layer,
                                                 uint64_t offset, MutableByteSpan out) {
  if (const absl::Status status = CheckRange(*layer, offset, out.size()); !status.ok())
    return status;
  if (out.empty()) return absl::OkStatus();
  if (layer->source().in_memory()) return ReadNow(scratch, *layer, offset, out);
  if (out.size() >= StreamDetector::kMinRequest && blocks_->slots() != 0)
    ReadAhead(layer, offset, out.size());
  if (const auto status = FromBlocks(*layer, offset, out)) return status;
  return FromChunk(*layer, offset, out);
}

void LayerEngine::ReadAhead(const LayerPtr& layer, uint64_t offset, size_t size) {
  const auto now = StreamDetector::Clock::now();
  const absl::MutexLock lock(&mu_);
  const StreamDetector::Plan plan =
      streams_.Note(layer->id(), offset, offset + size, layer->header().tar_length, now);
  uint64_t number = plan.first;
  while (number < plan.end && StartLoad(layer, number)) ++number;
  if (number != plan.first) streams_.Followed(plan, number);
}

// False where there is no slot for it, or it is not there to be read.
bool LayerEngine::StartLoad(const LayerPtr& layer, uint64_t number) {
  const uint64_t begin = number * kBlockSize;
  const uint64_t size = std::min(layer->header().covered_length - begin, kBlockSize);
  if (!layer->source().IsThere(begin, size)) return false;
  BlockPool::Reserved reserved =
      blocks_->Reserve({layer->id(), number}, size, BlockPool::Clock::now());
  if (reserved.found != BlockPool::Presence::kAbsent) return true;
  if (!reserved.pin) return false;
  queue_.AddLoad({layer, number, std::move(reserved.pin)});
  return true;
}

std::optional<absl::Status> LayerEngine::FromBlocks(const blob::LayerReader& layer, uint64_t offset,
                                                    MutableByteSpan out) {
  const uint64_t first = BlockOf(offset), last = LastBlock(offset, out.size());
  std::array<BlockPool::Pin, 2> pins;
  if (last - first >= pins.size()) return std::nullopt;
  for (uint64_t number = first; number <= last; ++number) {
    pins[number - first] = blocks_->Find({layer.id(), number});
    if (!pins[number - first]) return std::nullopt;
  }
  for (uint64_t number = first; number <= last; ++number) {
    const size_t n = InFirstBlock(offset, out.size());
    const absl::Status status = CopyOut(layer, number, pins[number - first], offset, out.first(n));
    if (!status.ok()) return status;
    offset += n;
    out = out.subspan(n);
  }
  return absl::OkStatus();
}

// Bytes of one block that is there.
absl::Status LayerEngine::CopyOut(const blob::LayerReader& layer, uint64_t number,
                                  BlockPool::Pin& pin, uint64_t offset, MutableByteSpan out) {
  const uint64_t begin = number * kBlockSize;
  pin.CountRead(out.size());
  if (!layer.header().encrypted) {
    std::memcpy(out.data(), pin->bytes().data() + (offset - begin), out.size());
    return absl::OkStatus();
  }
  const blob::ChunkRange all = blob::ChunksOf(layer.header(), begin, pin->length);
  const blob::ChunkRange range = blob::ChunksOf(layer.header(), offset, out.size());
  const std::span<const archive::Tag> tags(pin->tags);
  ASSIGN_OR_RETURN(const blob::LayerReader::Borrowed opener, layer.BorrowOpener());
  const absl::Status status =
      opener->Open(range, pin->bytes().subspan(range.begin - begin, range.size()),
                   tags.subspan(range.first - all.first, range.count), offset, out, &pin->verified);
  // The next one who asks may find it mended.
  if (!status.ok()) blocks_->Drop(pin);
  return status;
}

// Bytes inside one chunk that has been read before.
std::optional<absl::Status> LayerEngine::FromChunk(const blob::LayerReader& layer, uint64_t offset,
                                                   MutableByteSpan out) {
  const archive::IndexHeader& header = layer.header();
  if (!header.encrypted) return std::nullopt;
  const blob::ChunkRange range = blob::ChunksOf(header, offset, out.size());
  if (range.count != 1 || range.size() == out.size()) return std::nullopt;
  const ChunkCache::Pin pin = chunks_->Find(layer.id(), range.first);
  if (!pin) return std::nullopt;
  const absl::StatusOr<blob::LayerReader::Borrowed> opener = layer.BorrowOpener();
  if (!opener.ok()) return opener.status();
  return (*opener)->Crypt(offset, pin.bytes().subspan(offset - range.begin, out.size()), out);
}

absl::Status LayerEngine::ReadNow(ReadScratch& scratch, const blob::LayerReader& layer,
                                  uint64_t offset, MutableByteSpan out) {
  RETURN_IF_ERROR(CheckRange(layer, offset, out.size()));
  while (!out.empty()) {
    size_t n = InFirstBlock(offset, out.size());
    std::optional<absl::Status> status = FromBlocks(layer, offset, out.first(n));
    if (!status) {
      n = DirectPiece(layer, offset, out.size());
      status = FromChunk(layer, offset, out.first(n));
      if (!status) status = FromDisk(scratch, layer, offset, out.first(n));
    }
    RETURN_IF_ERROR(*status);
    offset += n;
    out = out.subspan(n);
  }
  return absl::OkStatus();
}

// How much of the range, whose first block is not there, to read from disk at once.
size_t LayerEngine::DirectPiece(const blob::LayerReader& layer, uint64_t offset,
                                size_t size) const {
  size = std::min(size, ReadScratch::kMaxPiece);
  const uint64_t last = LastBlock(offset, size);
  if (last != BlockOf(offset) && blocks_->Look({layer.id(), last}) == BlockPool::Presence::kReady)
    return InFirstBlock(offset, size);
  return size;
}

absl::Status LayerEngine::FromDisk(ReadScratch& scratch, const blob::LayerReader& layer,
                                   uint64_t offset, MutableByteSpan out) {
  const archive::IndexHeader& header = layer.header();
  if (!header.encrypted) return layer.source().ReadAt(offset, out);
  const blob::ChunkRange range = blob::ChunksOf(header, offset, out.size());
  const std::span<archive::Tag> tags = scratch.Tags(range.count);
  RETURN_IF_ERROR(layer.ReadTags(range.first, tags));

  // The ciphertext of a part of a chunk is read to where it is kept, that of whole
  // chunks to where their plaintext is wanted.
  ChunkCache::Pin frame;
  MutableByteSpan stored;
  if (range.size() == out.size() && IsAligned(out.data())) {
    stored = out;
  } else {
    if (range.count == 1) frame = chunks_->Allocate(header.chunk_size);
    stored = frame ? frame.bytes().first(range.size()) : scratch.Ciphertext(range.size());
  }
  RETURN_IF_ERROR(layer.source().ReadAt(range.begin, stored));
  ASSIGN_OR_RETURN(const blob::LayerReader::Borrowed opener, layer.BorrowOpener());
  RETURN_IF_ERROR(opener->Open(range, stored, tags, offset, out));
  if (frame) chunks_->Keep(frame, layer.id(), range.first);
  return absl::OkStatus();
}

bool LayerEngine::IsLoading(uint64_t layer, uint64_t offset, size_t size) const {
  if (size == 0) return false;
  for (uint64_t number = BlockOf(offset); number <= LastBlock(offset, size); ++number)
    if (blocks_->Look({layer, number}) == BlockPool::Presence::kLoading) return true;
  return false;
}

void LayerEngine::Defer(uint64_t layer, uint64_t offset, size_t size, DeferredPtr read) {
  if (size == 0) return queue_.AddReady(std::move(read));
  const uint64_t first = BlockOf(offset), last = LastBlock(offset, size);
  if (blocks_->Wait(layer, first, last, read)) return;
  if (read->pins.size() == last - first + 1) return queue_.AddReady(std::move(read));
  queue_.AddDirect(std::move(read));
}

}  // namespace kapsule::fuse
