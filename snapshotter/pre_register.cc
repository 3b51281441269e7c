#include "snapshotter/pre_register.h"

#include <algorithm>

#include "core/base/log.h"
#include "core/base/secret.h"
#include "snapshotter/overlay_mounts.h"

namespace kapsule::snapshotter {
namespace {

constexpr char kLabelPrefix[] = "containerd.io/snapshot/";
constexpr char kGcRefLabel[] = "containerd.io/gc.ref.snapshot.";
// Long after the last deadline, for the case that it cannot be deleted.
constexpr absl::Duration kLeaseLifetime = absl::Minutes(1);
constexpr char kRefLabel[] = "containerd.io/snapshot.ref";

// What containerd's own unpacker would send for this layer.
containerd::Labels LabelsOf(const oci::Descriptor& layer, const oci::Digest& chain_id) {
  containerd::Labels labels = {{kRefLabel, chain_id.text()}};
  for (const auto& [key, value] : layer.annotations) {
    if (key.starts_with(kLabelPrefix)) labels.emplace(key, value);
  }
  return labels;
}

absl::StatusOr<std::string> UniqueName() {
  std::byte random[8];
  RETURN_IF_ERROR(FillRandom(random));
  return "kapsule-" + ToHex(random);
}

std::string Title(const FoundImage& image, size_t i) {
  return fmt::format("image {}, layer {} ({})", image.title(), i,
                     image.manifest->layers[i].digest.text());
}

// Under the lease `name`. The puller refers to its snapshots only when it has
// unpacked all, so a label that it would set itself keeps these after the lease.
absl::Status PrepareLayers(containerd::Client* client, const FoundImage& image,
                           const std::string& snapshotter, const std::string& ns,
                           const std::string& name, absl::Time deadline) {
  const ManifestChain& manifest = *image.manifest;
  const size_t count = CountKapsuleLayers(manifest);
  std::string parent;
  for (size_t i = 0; i < count; ++i) {
    const std::string key = fmt::format("{}-{}", name, i);
    const absl::Status status = client->PrepareSnapshot(
        ns, snapshotter, key, parent, LabelsOf(manifest.layers[i], manifest.chain_ids[i]), name,
        deadline);
    if (status.ok()) {
      client->RemoveSnapshot(ns, snapshotter, key, deadline).IgnoreError();
      return FailedPrecondition("{}: snapshotter {} did not claim it", Title(image, i),
                                snapshotter);
    }
    if (!absl::IsAlreadyExists(status)) return Annotate(status, Title(image, i));
    parent = manifest.chain_ids[i].text();
  }
  RETURN_IF_ERROR(
      client->SetContentLabel(ns, manifest.config, kGcRefLabel + snapshotter, parent, deadline));
  log::info("image {}: its {} model layers are registered", image.title(), count);
  return absl::OkStatus();
}

// What the puller can do now. It unpacks the layer that it asked for even where
// that is registered meanwhile, and cannot unpack encrypted ones.
absl::Status Outcome(const FoundImage& image, const absl::Status& status) {
  const auto& layers = image.manifest->layers;
  const bool encrypted = std::any_of(
      layers.begin(), layers.begin() + static_cast<ptrdiff_t>(CountKapsuleLayers(*image.manifest)),
      [](const oci::Descriptor& layer) { return oci::IsEncrypted(layer.media_type); });
  if (!encrypted) return status;
  if (!status.ok())
    return absl::AbortedError(
        fmt::format("the layers of an encrypted model could not be registered; pull again: {}",
                    Describe(status)));
  if (!oci::IsEncrypted(image.layer().media_type)) return absl::OkStatus();
  return absl::AbortedError(
      fmt::format("{}: an encrypted layer cannot be unpacked; it is registered now, pull again",
                  Title(image, image.position)));
}

}  // namespace

size_t CountKapsuleLayers(const ManifestChain& manifest) {
  size_t count = 0;
  for (const oci::Descriptor& layer : manifest.layers) {
    const auto label = layer.annotations.find(oci::kLayerLabel);
    if (label == layer.annotations.end()) break;
    const auto parsed = oci::LayerLabel::FromJson(label->second);
    if (!parsed.ok() || parsed->digest != layer.digest) break;
    if (!manifest.CanBeGenuine(count)) return 0;
    ++count;
  }
  return count;
}

absl::Status PreRegisterImage(containerd::Client* client, ImageFinder* finder,
                              const std::string& snapshotter, const std::string& ns,
                              const oci::Digest& chain_id, absl::Time deadline) {
  ASSIGN_OR_RETURN(const std::vector<FoundImage> images, finder->OfChain(ns, chain_id, deadline));
  absl::Status too_many;
  for (const FoundImage& image : images) {
    if (image.position >= CountKapsuleLayers(*image.manifest)) continue;
    if (const size_t layers = image.manifest->layers.size(); layers > kMaxLowerDirs) {
      too_many = absl::AbortedError(Message(TooManyLayers("image " + image.title(), layers)));
      continue;  // another image with this chain may have fewer
    }
    ASSIGN_OR_RETURN(const std::string name, UniqueName());
    RETURN_IF_ERROR(client->CreateLease(ns, name, kLeaseLifetime, deadline));
    const absl::Status status = PrepareLayers(client, image, snapshotter, ns, name, deadline);
    client->DeleteLease(ns, name, deadline).IgnoreError();  // it would expire
    return Outcome(image, status);
  }
  return too_many;
}

}  // namespace kapsule::snapshotter
