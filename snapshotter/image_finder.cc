#include "snapshotter/image_finder.h"

#include <algorithm>
#include <optional>
#include <string_view>

namespace kapsule::snapshotter {
namespace {

// Counted for every entry of the cache, whatever its size.
constexpr size_t kEntryBytes = 1024;
// Of the names that CRI gives an image (its tag, repository@digest and this with the
// digest of its config) the one that nobody knows it by.
constexpr std::string_view kIdPrefix = "sha256:";

// Blobs that are missing or bad are passed over; other errors end a scan.
bool IsAboutTheBlob(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsInvalidArgument(status) || absl::IsDataLoss(status);
}

bool IsIndex(const std::string& media_type) {
  return media_type == oci::kIndexType || media_type == oci::kDockerIndexType;
}

bool IsNative(const oci::Descriptor& entry) {
  return entry.os.empty() || (entry.os == "linux" && entry.architecture == "amd64");
}

std::vector<std::pair<oci::Digest, bool>> EntriesOf(const oci::Index& index) {
  std::vector<std::pair<oci::Digest, bool>> entries;
  for (const oci::Descriptor& entry : index.manifests) {
    if (entries.size() == ImageFinder::kMaxIndexEntries) break;
    // Attestations are listed for platform "unknown".
    if (entry.os != "unknown") entries.emplace_back(entry.digest, IsNative(entry));
  }
  return entries;
}

}  // namespace

struct ImageFinder::Scan {
  const std::string& ns;
  const oci::Digest& chain_id;
  const absl::Time deadline;
  std::optional<oci::Digest> only = {};  // a manifest or an index
  std::vector<FoundImage> found = {};
  absl::Status bad = {};  // of the first manifest that is there and of no use

  bool full() const { return found.size() >= kMaxFound; }
  void NoteBad(const oci::Digest& manifest, const absl::Status& why) {
    if (bad.ok() && !absl::IsNotFound(why))
      bad = InvalidArgument("manifest {}: {}", manifest.text(), Message(why));
  }
  absl::StatusOr<std::vector<FoundImage>> FoundOrWhyNot() {
    if (found.empty()) RETURN_IF_ERROR(bad);
    return std::move(found);
  }
};

bool ManifestChain::CanBeGenuine(size_t i) const {
  return oci::IsEncrypted(layers[i].media_type) || layers[i].digest == diff_ids[i];
}

std::string FoundImage::title() const {
  return name.empty() ? "with manifest " + manifest->digest.text() : name;
}

absl::StatusOr<std::vector<FoundImage>> ImageFinder::OfChain(const std::string& ns,
                                                             const oci::Digest& chain_id,
                                                             absl::Time deadline) {
  Scan scan{ns, chain_id, deadline};
  RETURN_IF_ERROR(ScanAll(&scan));
  return std::move(scan.found);
}

absl::StatusOr<std::vector<FoundImage>> ImageFinder::OfDigest(const std::string& ns,
                                                              const oci::Digest& image,
                                                              const oci::Digest& chain_id,
                                                              absl::Time deadline) {
  Scan scan{ns, chain_id, deadline, image};
  RETURN_IF_ERROR(ScanAll(&scan));
  return scan.FoundOrWhyNot();
}

absl::Status ImageFinder::ScanAll(Scan* scan) {
  ASSIGN_OR_RETURN(const std::vector<containerd::Image> images,
                   client_.ListImages(scan->ns, scan->deadline));
  for (const bool native : {true, false}) {
    for (const containerd::Image& image : images) RETURN_IF_ERROR(ScanImage(scan, image, native));
    if (!scan->found.empty()) break;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<FoundImage>> ImageFinder::OfImage(const std::string& ns,
                                                             const std::string& name,
                                                             const oci::Digest& chain_id,
                                                             absl::Time deadline) {
  ASSIGN_OR_RETURN(const containerd::Image image, client_.GetImage(ns, name, deadline));
  Scan scan{ns, chain_id, deadline};
  for (const bool native : {true, false}) RETURN_IF_ERROR(ScanImage(&scan, image, native));
  return scan.FoundOrWhyNot();
}

absl::StatusOr<std::vector<FoundImage>> ImageFinder::OfLayer(const std::string& ns,
                                                             const oci::Digest& layer, size_t depth,
                                                             const oci::Digest& chain_id,
                                                             absl::Time deadline) {
  const std::string filter =
      fmt::format("labels.\"containerd.io/gc.ref.content.l.{}\"=={}", depth, layer.text());
  ASSIGN_OR_RETURN(const std::vector<containerd::ContentInfo> manifests,
                   client_.ListContent(ns, filter, kMaxFound, deadline));
  Scan scan{ns, chain_id, deadline};
  for (const containerd::ContentInfo& info : manifests)
    RETURN_IF_ERROR(ScanManifest(&scan, "", info.digest));
  std::erase_if(scan.found, [&](const FoundImage& image) {
    return image.position != depth || image.layer().digest != layer;
  });
  return std::move(scan.found);
}

absl::Status ImageFinder::ScanImage(Scan* scan, const containerd::Image& image, bool native) {
  const auto wanted = [&](const oci::Digest& digest) {
    return !scan->only || digest == *scan->only || image.target.digest == *scan->only;
  };
  if (!IsIndex(image.target.media_type)) {
    if (!native || !wanted(image.target.digest)) return absl::OkStatus();
    return ScanManifest(scan, image.name, image.target.digest);
  }
  const auto index = Load(scan->ns, image.target.digest, /*index=*/true, scan->deadline);
  if (!index.ok()) {
    scan->NoteBad(image.target.digest, index.status());
    return IsAboutTheBlob(index.status()) ? absl::OkStatus() : index.status();
  }
  for (const auto& [digest, entry_native] : (*index)->entries) {
    if (entry_native == native && wanted(digest))
      RETURN_IF_ERROR(ScanManifest(scan, image.name, digest));
  }
  return absl::OkStatus();
}

absl::Status ImageFinder::ScanManifest(Scan* scan, const std::string& name,
                                       const oci::Digest& digest) {
  if (scan->full()) return absl::OkStatus();
  const auto parsed = Load(scan->ns, digest, /*index=*/false, scan->deadline);
  const absl::Status bad = parsed.ok() ? (*parsed)->bad : parsed.status();
  if (!bad.ok()) {
    scan->NoteBad(digest, bad);
    return parsed.ok() || IsAboutTheBlob(bad) ? absl::OkStatus() : bad;
  }
  const std::shared_ptr<const ManifestChain>& manifest = (*parsed)->manifest;
  const auto& chain_ids = manifest->chain_ids;
  const auto at = std::find(chain_ids.begin(), chain_ids.end(), scan->chain_id);
  if (at == chain_ids.end()) return absl::OkStatus();
  const auto known =
      std::find_if(scan->found.begin(), scan->found.end(),
                   [&](const FoundImage& image) { return image.manifest->digest == digest; });
  if (known == scan->found.end()) {
    scan->found.push_back({name, manifest, static_cast<size_t>(at - chain_ids.begin())});
  } else if (known->name.starts_with(kIdPrefix)) {
    known->name = name;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const ImageFinder::Parsed>> ImageFinder::Load(
    const std::string& ns, const oci::Digest& digest, bool index, absl::Time deadline) {
  if (auto cached = FindCached({digest, index})) return cached;
  ASSIGN_OR_RETURN(const std::string text,
                   client_.ReadBlob(ns, digest, oci::kMaxManifestBytes, deadline));
  size_t bytes = kEntryBytes + text.size();
  Parsed parsed;
  if (index) {
    const absl::StatusOr<oci::Index> entries = oci::ParseIndex(text);
    parsed.bad = entries.status();
    if (entries.ok()) parsed.entries = EntriesOf(*entries);
  } else {
    ASSIGN_OR_RETURN(parsed, LoadManifest(ns, digest, text, &bytes, deadline));
  }
  auto shared = std::make_shared<const Parsed>(std::move(parsed));
  Keep({{digest, index}, shared, bytes});
  return shared;
}

absl::StatusOr<ImageFinder::Parsed> ImageFinder::LoadManifest(const std::string& ns,
                                                              const oci::Digest& digest,
                                                              const std::string& text,
                                                              size_t* bytes, absl::Time deadline) {
  absl::StatusOr<oci::Manifest> manifest = oci::ParseManifest(text);
  if (!manifest.ok()) return Parsed{nullptr, {}, manifest.status()};
  ASSIGN_OR_RETURN(const std::string config,
                   client_.ReadBlob(ns, manifest->config.digest, oci::kMaxManifestBytes, deadline));
  *bytes += config.size();
  const absl::StatusOr<std::vector<oci::Digest>> diff_ids = oci::ParseDiffIds(config);
  if (!diff_ids.ok()) return Parsed{nullptr, {}, Annotate(diff_ids.status(), "its config")};
  if (diff_ids->size() != manifest->layers.size())
    return Parsed{nullptr,
                  {},
                  InvalidArgument("it has {} layers, and its config {} diff_ids",
                                  manifest->layers.size(), diff_ids->size())};
  ManifestChain chain{digest, manifest->config.digest, std::move(manifest->layers), *diff_ids,
                      oci::ChainIds(*diff_ids)};
  return Parsed{std::make_shared<const ManifestChain>(std::move(chain)), {}, {}};
}

std::shared_ptr<const ImageFinder::Parsed> ImageFinder::FindCached(const CacheKey& key) {
  absl::MutexLock lock(&mu_);
  const auto it = by_key_.find(key);
  if (it == by_key_.end()) return nullptr;
  cache_.splice(cache_.begin(), cache_, it->second);
  return it->second->parsed;
}

void ImageFinder::Keep(Cached entry) {
  absl::MutexLock lock(&mu_);
  if (by_key_.contains(entry.key)) return;
  used_ += entry.bytes;
  cache_.push_front(std::move(entry));
  by_key_[cache_.front().key] = cache_.begin();
  while (used_ > cache_bytes_) {
    used_ -= cache_.back().bytes;
    by_key_.erase(cache_.back().key);
    cache_.pop_back();
  }
}

}  // namespace kapsule::snapshotter
