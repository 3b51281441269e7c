#include "snapshotter/authoriser.h"

namespace kapsule::snapshotter {
namespace {

// "No key" and "another key" are the same refusal to a container.
absl::Status AsRefusal(const absl::Status& status) {
  if (!absl::IsNotFound(status)) return status;
  return PermissionDenied("{}", Message(status));
}

}  // namespace

absl::Status Authoriser::Authorise(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                                   const LayerTable::Ready& ready, absl::Time deadline) {
  ASSIGN_OR_RETURN(const std::vector<FoundImage> images, Candidates(key, chain.back(), deadline));
  absl::Status refusal;
  for (const FoundImage& image : images) {
    const absl::Status status = CheckImage(image, chain, ready, deadline);
    if (status.ok()) return status;
    // An image that could not be asked may still be the one.
    if (refusal.ok() || IsTransient(status)) refusal = status;
  }
  if (!refusal.ok()) return refusal;
  return PermissionDenied("no image of namespace {} has {} in chain {}", key.ns,
                          LayerTitle(chain.back()), chain.back().chain_id.text());
}

absl::StatusOr<std::vector<FoundImage>> Authoriser::Candidates(const SnapshotKey& key,
                                                               const ModelLayer& top,
                                                               absl::Time deadline) {
  if (key.image_volume) return OfVolume(key, top, deadline);
  const std::string& ns = key.ns;
  const auto container = client_.GetContainer(ns, key.client, deadline);
  // Snapshots are prepared before the record is there.
  if (absl::IsNotFound(container.status()) || absl::IsInvalidArgument(container.status()))
    return finder_.OfChain(ns, top.chain_id, deadline);
  RETURN_IF_ERROR(container.status());
  if (container->image.empty()) return finder_.OfChain(ns, top.chain_id, deadline);

  auto images = finder_.OfImage(ns, container->image, top.chain_id, deadline);
  if (absl::IsNotFound(images.status()))
    return PermissionDenied("image {} of container {} is not in namespace {} any more",
                            container->image, key.client, ns);
  if (!images.ok())
    return Annotate(AsRefusal(images.status()),
                    fmt::format("image {} of container {}", container->image, key.client));
  if (images->empty())
    return PermissionDenied("image {} of container {} has no {} in chain {}", container->image,
                            key.client, LayerTitle(top), top.chain_id.text());
  return images;
}

absl::StatusOr<std::vector<FoundImage>> Authoriser::OfVolume(const SnapshotKey& key,
                                                             const ModelLayer& top,
                                                             absl::Time deadline) {
  if (!key.volume_image)
    return PermissionDenied("image volume {} does not say of which image", key.client);
  absl::StatusOr<std::vector<FoundImage>> images =
      finder_.OfDigest(key.ns, *key.volume_image, top.chain_id, deadline);
  if (!images.ok())
    return Annotate(AsRefusal(images.status()),
                    fmt::format("image {} of a volume", key.volume_image->text()));
  if (images->empty())
    return PermissionDenied("image {} of a volume has no {} in chain {}, or is not in namespace {}",
                            key.volume_image->text(), LayerTitle(top), top.chain_id.text(), key.ns);
  return images;
}

absl::Status Authoriser::CheckImage(const FoundImage& image, const std::vector<ModelLayer>& chain,
                                    const LayerTable::Ready& ready, absl::Time deadline) {
  for (size_t i = 0; i < chain.size(); ++i) {
    const absl::Status status = CheckLayer(image, chain[i], *ready.opened[i], deadline);
    if (!status.ok())
      return Annotate(AsRefusal(status),
                      fmt::format("image {}, {}", image.title(), LayerTitle(chain[i])));
  }
  return absl::OkStatus();
}

absl::Status Authoriser::CheckLayer(const FoundImage& image, const ModelLayer& layer,
                                    const Opened& opened, absl::Time deadline) {
  const ManifestChain& manifest = *image.manifest;
  if (layer.depth >= manifest.layers.size() || manifest.chain_ids[layer.depth] != layer.chain_id ||
      manifest.layers[layer.depth].digest != layer.label.digest)
    return PermissionDenied("the image names other bytes at this position");
  if (oci::IsEncrypted(manifest.layers[layer.depth].media_type) != opened.encrypted)
    return PermissionDenied("it is open as {} layer, which the image does not say",
                            opened.encrypted ? "an encrypted" : "a plain");
  if (!manifest.CanBeGenuine(layer.depth))
    return PermissionDenied("a plain layer that is not what its diff_id names");
  const oci::Annotations& annotations = manifest.layers[layer.depth].annotations;
  if (annotations == opened.annotations) return absl::OkStatus();

  const Proof proof{manifest.digest, layer.label.digest, opened.number};
  {
    absl::MutexLock lock(&mu_);
    if (proven_.contains(proof)) return absl::OkStatus();
  }
  RETURN_IF_ERROR(compare_(layer.label.digest, annotations, deadline));
  absl::MutexLock lock(&mu_);
  if (proven_.size() >= kMaxProofs) proven_.clear();
  proven_.insert(proof);
  return absl::OkStatus();
}

}  // namespace kapsule::snapshotter
