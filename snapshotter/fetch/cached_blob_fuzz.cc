// A registry and a cache that lie: what is taken into the cache's file, or found to
// be there, is the layer's. The bytes say what is changed, six for each byte.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/base/log.h"
#include "core/blob/test_layer.h"
#include "snapshotter/fetch/cached_blob.h"

namespace {

using namespace kapsule;
using namespace kapsule::fetch;

constexpr size_t kMaxChanges = 64;

void Require(bool condition) {
  if (!condition) std::abort();
}

enum Target : uint8_t { kRegistry, kFile, kList, kTargets };

struct Change {
  Target target;
  uint32_t offset;
  std::byte with;
};

class World {
 public:
  World() {
    (void)InitLog("cached_blob_fuzz", "error");
    char name[] = "/tmp/kapsule-blob-fuzz-XXXXXX";
    path_ = mkdtemp(name);
    folder_ = CacheFolder::Open(path_, geteuid(), getegid(), absl::ZeroDuration()).value();
  }
  ~World() { (void)RemoveTree(path_); }

  void Run(bool is_there_before, const std::vector<Change>& changes) {
    Require(folder_->Remove(name_.digest).ok());
    registry_ = layer_.bytes;
    if (is_there_before) Fill();
    for (const Change& change : changes) Apply(change);
    const auto loaded = Load();
    if (!loaded.ok()) return;
    CachedBlob& blob = *loaded->blob;
    Bytes buffer(blob.block_size());
    for (uint64_t block = 0; block < blob.blocks(); ++block) {
      const auto good = blob.Check(block, buffer, fetch_);
      if (good.ok() && *good) RequireRight(blob, block);
      const ByteSpan came = AsBytes(registry_).subspan(blob.OffsetOf(block), blob.LengthOf(block));
      if (blob.Put(block, came, fetch_).ok()) RequireRight(blob, block);
    }
    (void)blob.Store(loaded->there);
  }

 private:
  absl::StatusOr<CachedBlob::Loaded> Load() {
    return CachedBlob::Load(*folder_, name_, std::make_shared<archive::PageCache>(1 << 20), fetch_);
  }
  void Fill() {
    auto loaded = Load().value();
    for (uint64_t block = 0; block < loaded.blob->blocks(); block += 2) {
      const ByteSpan bytes =
          AsBytes(layer_.bytes).subspan(loaded.blob->OffsetOf(block), loaded.blob->LengthOf(block));
      Require(loaded.blob->Put(block, bytes, fetch_).ok());
      loaded.there.Add(block);
    }
    Require(loaded.blob->Store(loaded.there).ok());
  }
  void Apply(const Change& change) {
    if (change.target == kRegistry) {
      char& byte = registry_[change.offset % registry_.size()];
      byte = static_cast<char>(byte ^ std::to_integer<char>(change.with));
      return;
    }
    const std::string name =
        path_ / (name_.digest.hex() + (change.target == kList ? ".blocks" : ""));
    const auto fd = OpenFile(name, O_RDWR);
    if (!fd.ok()) return;
    const off_t size = lseek(fd->get(), 0, SEEK_END);
    if (size > 0) (void)!pwrite(fd->get(), &change.with, 1, change.offset % size);
  }
  void RequireRight(const CachedBlob& blob, uint64_t block) {
    std::string bytes(blob.LengthOf(block), '\0');
    const auto reader = FileReader::Open(path_ / name_.digest.hex()).value();
    Require(reader->ReadAt(blob.OffsetOf(block), std::as_writable_bytes(std::span(bytes))).ok());
    Require(bytes == layer_.bytes.substr(blob.OffsetOf(block), bytes.size()));
  }

  std::filesystem::path path_;
  std::unique_ptr<CacheFolder> folder_;
  const blob::TestLayer layer_ =
      blob::BuildTestLayer({{archive::DirectoryEntry(""), ""},
                            blob::MakeTestFile("weights", blob::TestBytes(2'500'000, 1))},
                           /*encrypted=*/true);
  const BlobName name_{oci::Digest::Of(AsBytes(layer_.bytes)), layer_.bytes.size(), layer_.ref};
  std::string registry_;
  const FetchBytes fetch_ = [this](uint64_t offset, MutableByteSpan out) -> absl::Status {
    Require(offset <= registry_.size() && out.size() <= registry_.size() - offset);
    std::memcpy(out.data(), registry_.data() + offset, out.size());
    return absl::OkStatus();
  };
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static World world;
  if (size == 0) return 0;
  const ByteSpan input = std::as_bytes(std::span(data, size));
  std::vector<Change> changes;
  for (size_t at = 1; at + 6 <= size && changes.size() < kMaxChanges; at += 6)
    changes.push_back({static_cast<Target>(data[at] % kTargets),
                       LoadLe<uint32_t>(input.data() + at + 1), input[at + 5]});
  world.Run(data[0] % 2 != 0, changes);
  return 0;
}
