// Layers and readers for the tests of the engine.
#pragma once

#include <atomic>
#include <future>
#include <memory>
#include <string>

#include "core/blob/test_layer.h"
#include "snapshotter/fuse/layer_engine.h"

namespace kapsule::fuse::testing {

// A blob in memory whose reads are counted, and which can be damaged or cut while
// others read it.
class TestSource final : public ReaderAt {
 public:
  explicit TestSource(const std::string& bytes) : bytes_(AsBytes(bytes)) {}
  uint64_t size() const override { return bytes_.size(); }
  absl::Status ReadAt(uint64_t offset, MutableByteSpan out) const override {
    ++reads;
    bytes_read += out.size();
    if (offset + out.size() > cut_at) return DataLoss("file ends at byte {}", cut_at.load());
    RETURN_IF_ERROR(MemoryReader(bytes_).ReadAt(offset, out));
    const uint64_t bad = damaged_at;
    if (bad - offset < out.size()) out[bad - offset] ^= std::byte{1};
    return absl::OkStatus();
  }

  std::atomic<uint64_t> cut_at{~uint64_t{0}}, damaged_at{~uint64_t{0}};
  mutable std::atomic<uint64_t> reads{0}, bytes_read{0};

 private:
  const ByteSpan bytes_;
};

// A layer with one file of `size` bytes, open.
struct OpenLayer {
  blob::TestLayer layer;
  TestSource* source = nullptr;  // of `reader`
  LayerPtr reader;
  uint64_t covered() const { return layer.header.covered_length; }
};
inline std::unique_ptr<OpenLayer> MakeOpenLayer(size_t size, bool encrypted, uint32_t chunk_size,
                                                const blob::LayerReader::Shared& shared) {
  auto made = std::make_unique<OpenLayer>();
  made->layer = blob::BuildTestLayer({blob::MakeTestFile("weights", blob::TestBytes(size, 1))},
                                     encrypted, chunk_size);
  auto source = std::make_unique<TestSource>(made->layer.bytes);
  made->source = source.get();
  std::optional<crypt::LayerKey> key;
  if (encrypted) key = made->layer.key.Clone();
  made->reader =
      blob::LayerReader::Open(std::move(source), made->layer.ref, std::move(key), shared).value();
  return made;
}

// One read as a worker does it: from memory, else as a part of a stream by an I/O
// thread, else from disk.
inline absl::Status Read(LayerEngine& engine, ReadScratch& scratch, const LayerPtr& layer,
                         uint64_t offset, MutableByteSpan out) {
  if (const auto status = engine.TryRead(scratch, layer, offset, out)) return *status;
  if (!engine.IsLoading(layer->id(), offset, out.size()))
    return engine.ReadNow(scratch, *layer, offset, out);
  std::promise<absl::Status> done;
  auto read = std::make_shared<DeferredRead>();
  read->finish = [&](ReadScratch& own, unsigned) {
    done.set_value(engine.ReadNow(own, *layer, offset, out));
  };
  engine.Defer(layer->id(), offset, out.size(), std::move(read));
  return done.get_future().get();
}

}  // namespace kapsule::fuse::testing
