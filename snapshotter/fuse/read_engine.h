// Bytes of views: from memory at once, else from disk, in this thread or later.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "snapshotter/fuse/layer_engine.h"
#include "snapshotter/fuse/locked_buffer.h"
#include "snapshotter/fuse/served_view.h"
#include "snapshotter/fuse/session.h"

namespace kapsule::fuse {

// Thread-safe. Views must have their layer().
class ReadEngine {
 public:
  struct Options {
    size_t read_ahead_bytes = 32 << 20;   // ciphertext of streams
    size_t chunk_cache_bytes = 32 << 20;  // verified chunks
    size_t index_cache_bytes = 8 << 20;   // index pages of all layers
    unsigned io_threads = 6;
  };
  // A read that waits. `finish` is called by an I/O thread, which gives it its
  // scratch and its reply buffer; it calls ReadNow() and answers.
  struct Deferred {
    ViewPtr view;
    uint64_t offset = 0;
    uint32_t size = 0;
    std::function<void(ReadScratch&, const Reply&)> finish;
  };

  // Maps and locks what it needs; starts threads in Start().
  static absl::StatusOr<std::unique_ptr<ReadEngine>> Make(const Options& options);
  absl::Status Start() { return layers_->Start(); }
  std::unique_ptr<ReadScratch> MakeScratch() const { return std::make_unique<ReadScratch>(); }

  // What the readers of all layers that are served are opened with.
  const blob::LayerReader::Shared& shared() const { return shared_; }

  // The bytes or the error where no I/O is needed; nullopt where it is. After an
  // error `out` is zero.
  std::optional<absl::Status> TryRead(ReadScratch& scratch, const ServedView& view, uint64_t offset,
                                      MutableByteSpan out);
  // Waits for the disk, but not for bytes that come from afar.
  absl::Status ReadNow(ReadScratch& scratch, const ServedView& view, uint64_t offset,
                       MutableByteSpan out);
  // The part of a view's range that is of the layer.
  struct LayerRange {
    uint64_t offset = 0;
    size_t size = 0;
  };
  static LayerRange InLayer(const ServedView& view, uint64_t offset, size_t size);
  // Whether that part can be read, and when: ReaderAt's of the stored blob.
  static bool IsThere(const ServedView& view, uint64_t offset, size_t size);
  static void WhenThere(const ServedView& view, uint64_t offset, size_t size,
                        std::function<void(absl::Status)> then);
  // Whether a read should wait for its stream's blocks, which are on their way,
  // rather than be read from disk by the calling thread.
  bool InStream(const ServedView& view, uint64_t offset, uint32_t size);
  // Finishes the read when its bytes are there. Never waits.
  void Defer(Deferred read);

 private:
  ReadEngine(const Options& options, std::vector<LockedBuffer> replies,
             std::unique_ptr<LayerEngine> layers);

  const blob::LayerReader::Shared shared_;
  const std::vector<LockedBuffer> replies_;  // of each I/O thread
  const std::unique_ptr<LayerEngine> layers_;
};

}  // namespace kapsule::fuse
