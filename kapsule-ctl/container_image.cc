#include "kapsule-ctl/container_image.h"

#include "core/oci/model_layer.h"

namespace kapsule::ctl {
namespace {

absl::StatusOr<bool> IsModelLayer(const oci::Descriptor& layer, const oci::Digest& diff_id) {
  absl::StatusOr<oci::LayerLabel> label = oci::FindLayerLabel(layer);
  if (label.ok() && label->diff_id != diff_id)
    label = InvalidArgument("the config names it {}, its label {}", diff_id.text(),
                            label->diff_id.text());
  if (label.ok() || !oci::IsEncrypted(layer.media_type)) return label.ok();
  return Unimplemented("layer {} is encrypted, but not Kapsule's: {}", layer.digest.text(),
                       Message(label.status()));
}

}  // namespace

oci::Descriptor DescriptorOf(const oci::ImageSource::ManifestBytes& document) {
  const ByteSpan bytes = AsBytes(document.bytes);
  return {document.media_type, oci::Digest::Of(bytes), bytes.size(), {}, "", ""};
}

absl::StatusOr<ContainerImage> ReadContainerImage(oci::ImageSource& source) {
  ContainerImage image;
  ASSIGN_OR_RETURN(image.manifest, image::ReadImageManifest(source));
  ASSIGN_OR_RETURN(image.config, image::ReadConfig(source, image.manifest.manifest.config));
  const absl::StatusOr<std::vector<oci::Digest>> diff_ids = oci::ParseDiffIds(image.config);
  if (!diff_ids.ok() || diff_ids->size() != image.layers().size())
    return Unimplemented("{} is no container image: its config does not name its {} layers",
                         source.name(), image.layers().size());
  image.diff_ids = *diff_ids;
  image.chain_ids = oci::ChainIds(image.diff_ids);
  for (size_t i = 0; i < image.layers().size(); ++i) {
    ASSIGN_OR_RETURN(const bool is_model, IsModelLayer(image.layers()[i], image.diff_ids[i]));
    image.is_model.push_back(is_model);
  }
  return image;
}

}  // namespace kapsule::ctl
