#include "snapshotter/fuse/read_engine.h"

#include <algorithm>
#include <utility>

namespace kapsule::fuse {
namespace {

absl::Status CheckRange(const ServedView& view, uint64_t offset, size_t size) {
  if (offset <= view.size() && size <= view.size() - offset) return absl::OkStatus();
  return absl::OutOfRangeError(
      fmt::format("{} bytes at byte {} of a view of {}", size, offset, view.size()));
}

// What is around the tar's bytes. `read_tar` gives those, or nullopt.
template <typename ReadTar>
std::optional<absl::Status> ReadParts(const ServedView& view, uint64_t offset, MutableByteSpan out,
                                      const ReadTar& read_tar) {
  absl::Status status = CheckRange(view, offset, out.size());
  if (!status.ok()) return status;
  if (offset < view.metadata_size()) {
    const size_t n = std::min<uint64_t>(out.size(), view.metadata_size() - offset);
    status = view.ReadMetadata(offset, out.first(n));
    if (!status.ok()) return status;
    offset += n;
    out = out.subspan(n);
  }
  const ReadEngine::LayerRange range = ReadEngine::InLayer(view, offset, out.size());
  if (range.size != 0) {
    const MutableByteSpan tar = out.first(range.size);
    const std::optional<absl::Status> read = read_tar(range.offset, tar);
    if (!read || !read->ok()) return read;
    status = view.ClearGaps(range.offset, tar);
  }
  std::fill(out.begin() + range.size, out.end(), std::byte{0});
  return status;
}

void ClearAfterFailure(MutableByteSpan out, const absl::Status& status) {
  if (!status.ok()) std::fill(out.begin(), out.end(), std::byte{0});
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReadEngine>> ReadEngine::Make(const Options& options) {
  std::vector<LockedBuffer> replies;
  for (unsigned i = 0; i < options.io_threads; ++i) {
    ASSIGN_OR_RETURN(LockedBuffer reply, LockedBuffer::Make(Reply::kBufferSize));
    replies.push_back(std::move(reply));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<LayerEngine> layers,
                   LayerEngine::Make({.read_ahead_bytes = options.read_ahead_bytes,
                                      .chunk_cache_bytes = options.chunk_cache_bytes,
                                      .io_threads = options.io_threads}));
  return std::unique_ptr<ReadEngine>(
      new ReadEngine(options, std::move(replies), std::move(layers)));
}

ReadEngine::ReadEngine(const Options& options, std::vector<LockedBuffer> replies,
                       std::unique_ptr<LayerEngine> layers)
    : shared_{std::make_shared<archive::PageCache>(options.index_cache_bytes),
              std::make_shared<blob::OpenerPool>()},
      replies_(std::move(replies)),
      layers_(std::move(layers)) {}

std::optional<absl::Status> ReadEngine::TryRead(ReadScratch& scratch, const ServedView& view,
                                                uint64_t offset, MutableByteSpan out) {
  const std::optional<absl::Status> status =
      ReadParts(view, offset, out, [&](uint64_t at, MutableByteSpan tar) {
        return layers_->TryRead(scratch, view.layer(), at, tar);
      });
  if (status) ClearAfterFailure(out, *status);
  return status;
}

absl::Status ReadEngine::ReadNow(ReadScratch& scratch, const ServedView& view, uint64_t offset,
                                 MutableByteSpan out) {
  const std::optional<absl::Status> status =
      ReadParts(view, offset, out, [&](uint64_t at, MutableByteSpan tar) {
        return std::optional(layers_->ReadNow(scratch, *view.layer(), at, tar));
      });
  ClearAfterFailure(out, *status);
  return *status;
}

ReadEngine::LayerRange ReadEngine::InLayer(const ServedView& view, uint64_t offset, size_t size) {
  const uint64_t begin = std::max(offset, view.metadata_size());
  const uint64_t end = std::min(offset + size, view.metadata_size() + view.tar_length());
  if (begin >= end) return {};
  return {begin - view.metadata_size(), end - begin};
}

// A chunk lies in one block: what is around the range comes with it.
bool ReadEngine::IsThere(const ServedView& view, uint64_t offset, size_t size) {
  const LayerRange range = InLayer(view, offset, size);
  return view.layer()->source().IsThere(range.offset, range.size);
}

void ReadEngine::WhenThere(const ServedView& view, uint64_t offset, size_t size,
                           std::function<void(absl::Status)> then) {
  const LayerRange range = InLayer(view, offset, size);
  view.layer()->source().WhenThere(range.offset, range.size, std::move(then));
}

bool ReadEngine::InStream(const ServedView& view, uint64_t offset, uint32_t size) {
  const auto [at, n] = InLayer(view, offset, size);
  return n != 0 && layers_->IsLoading(view.layer()->id(), at, n);
}

void ReadEngine::Defer(Deferred read) {
  const auto [at, n] = InLayer(*read.view, read.offset, read.size);
  const uint64_t layer = read.view->layer()->id();
  auto deferred = std::make_shared<DeferredRead>();
  deferred->finish = [this, finish = std::move(read.finish)](ReadScratch& scratch,
                                                             unsigned thread) {
    finish(scratch, Reply(replies_[thread].bytes()));
  };
  layers_->Defer(layer, at, n, std::move(deferred));
}

}  // namespace kapsule::fuse
