#include "core/oci/model_layer.h"

namespace kapsule::oci {

absl::StatusOr<LayerLabel> FindLayerLabel(const Descriptor& layer) {
  const auto text = layer.annotations.find(kLayerLabel);
  if (text == layer.annotations.end())
    return NotFound("layer {} has no {}", layer.digest.text(), kLayerLabel);
  ASSIGN_OR_RETURN(LayerLabel label, LayerLabel::FromJson(text->second));
  if (label.digest != layer.digest || label.size != layer.size)
    return InvalidArgument("{} of layer {} is about another blob, {}", kLayerLabel,
                           layer.digest.text(), label.digest.text());
  if (!IsEncrypted(layer.media_type) && label.diff_id != layer.digest)
    return InvalidArgument("plain layer {} is not the tar that its diff_id names, {}",
                           layer.digest.text(), label.diff_id.text());
  if (IsEncrypted(layer.media_type) && label.diff_id == layer.digest)
    return InvalidArgument("encrypted layer {} calls itself plain", layer.digest.text());
  return label;
}

}  // namespace kapsule::oci
