// Plaintext of layers, out of memory or from disk: read-ahead of streams, a cache
// of verified chunks, and direct reads for the rest.
#pragma once

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "snapshotter/fuse/chunk_cache.h"
#include "snapshotter/fuse/io_queue.h"
#include "snapshotter/fuse/stream_detector.h"

namespace kapsule::fuse {

// All memory is reserved at the start. Offsets are bytes of a layer's covered
// range; after an error `out` is anything. Thread-safe.
class LayerEngine {
 public:
  struct Options {
    size_t read_ahead_bytes = 32 << 20;
    size_t chunk_cache_bytes = 32 << 20;
    unsigned io_threads = 6;
  };
  static absl::StatusOr<std::unique_ptr<LayerEngine>> Make(const Options& options);
  // Waits for the reads that I/O threads are at; those that wait are dropped.
  ~LayerEngine();
  // ResourceExhausted: no threads. Once.
  absl::Status Start();

  // The bytes or the error where no I/O is needed, else nullopt. What streams read
  // next is put on its way.
  std::optional<absl::Status> TryRead(ReadScratch& scratch, const LayerPtr& layer, uint64_t offset,
                                      MutableByteSpan out);
  // Waits for the disk, but not for blocks that others load.
  //   DataLoss, OutOfRange  as LayerReader::Read()
  absl::Status ReadNow(ReadScratch& scratch, const blob::LayerReader& layer, uint64_t offset,
                       MutableByteSpan out);
  // Whether a part of the range is on its way.
  bool IsLoading(uint64_t layer, uint64_t offset, size_t size) const;
  // Calls read->finish from an I/O thread when the blocks of the range that are on
  // their way are there; at once where none is.
  void Defer(uint64_t layer, uint64_t offset, size_t size, DeferredPtr read);

 private:
  LayerEngine(const Options& options, std::unique_ptr<BlockPool> blocks,
              std::unique_ptr<ChunkCache> chunks);
  void Run(unsigned thread);
  void ReadAhead(const LayerPtr& layer, uint64_t offset, size_t size) ABSL_LOCKS_EXCLUDED(mu_);
  bool StartLoad(const LayerPtr& layer, uint64_t number);
  static void Finish(const DeferredRead& read, ReadScratch& scratch, unsigned thread);
  void Load(const BlockLoad& load);
  static absl::Status Fill(const BlockLoad& load);
  std::optional<absl::Status> FromBlocks(const blob::LayerReader& layer, uint64_t offset,
                                         MutableByteSpan out);
  std::optional<absl::Status> FromChunk(const blob::LayerReader& layer, uint64_t offset,
                                        MutableByteSpan out);
  absl::Status CopyOut(const blob::LayerReader& layer, uint64_t number, BlockPool::Pin& pin,
                       uint64_t offset, MutableByteSpan out);
  absl::Status FromDisk(ReadScratch& scratch, const blob::LayerReader& layer, uint64_t offset,
                        MutableByteSpan out);
  size_t DirectPiece(const blob::LayerReader& layer, uint64_t offset, size_t size) const;

  const Options options_;
  const std::unique_ptr<BlockPool> blocks_;
  const std::unique_ptr<ChunkCache> chunks_;
  IoQueue queue_;
  std::vector<std::thread> threads_;

  absl::Mutex mu_;  // taken before the locks of the others, never over I/O
  StreamDetector streams_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kapsule::fuse
