#include "core/image/layer_descriptor.h"

#include "core/crypt/keywrap_jwe.h"

namespace kapsule::image {

absl::StatusOr<oci::Descriptor> DescribeLayer(WrittenLayer layer, const LayerNames& names,
                                              std::span<const crypt::Key> recipients) {
  oci::Descriptor descriptor;
  descriptor.media_type = layer.secret ? oci::kLayerTarEncryptedType : oci::kLayerTarType;
  descriptor.digest = layer.digest;
  descriptor.size = layer.size;
  oci::Annotations& annotations = descriptor.annotations;
  if (layer.secret) {
    if (recipients.empty()) return InvalidArgument("an encrypted layer without recipients");
    const crypt::PrivateOptions options{std::move(layer.secret->key), layer.diff_id.text(),
                                        layer.index};
    ASSIGN_OR_RETURN(annotations, crypt::WrapLayer(options, {layer.secret->hmac}, recipients));
  }
  annotations[oci::kIndexAnnotation] = layer.index.ToJson();
  annotations[oci::kKindAnnotation] = kKindPrefix + names.kind;
  if (!names.file.empty()) {
    annotations[oci::kTitleAnnotation] = names.file;
    annotations[oci::kFilepathAnnotation] = names.file;
  }
  const oci::LayerLabel label{layer.digest, layer.size, layer.diff_id, names.kind};
  ASSIGN_OR_RETURN(annotations[oci::kLayerLabel], label.ToJson());
  return descriptor;
}

}  // namespace kapsule::image
