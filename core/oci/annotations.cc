#include "core/oci/annotations.h"

#include "core/base/json.h"

namespace kapsule::oci {
namespace {

absl::StatusOr<Digest> DigestMember(const Json& object, std::string_view name) {
  ASSIGN_OR_RETURN(const std::string text, StringMember(object, name));
  absl::StatusOr<Digest> digest = Digest::Parse(text);
  if (!digest.ok()) return Annotate(digest.status(), fmt::format("\"{}\"", name));
  return digest;
}

absl::Status CheckVersion(const Json& object) {
  ASSIGN_OR_RETURN(const uint64_t version, UintMember(object, "version"));
  if (version != 1) return Unimplemented("version {}, this program reads version 1", version);
  return absl::OkStatus();
}

absl::StatusOr<IndexRef> ParseIndexRef(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, kMaxLabelBytes));
  RETURN_IF_ERROR(CheckVersion(json));
  IndexRef ref;
  ASSIGN_OR_RETURN(ref.offset, UintMember(json, "offset"));
  ASSIGN_OR_RETURN(ref.length, UintMember(json, "length"));
  if (!CheckedAdd(ref.offset, ref.length)) return InvalidArgument("offset + length overflows");
  ASSIGN_OR_RETURN(ref.root, DigestMember(json, "root"));
  return ref;
}

absl::StatusOr<LayerLabel> ParseLayerLabel(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, kMaxLabelBytes));
  RETURN_IF_ERROR(CheckVersion(json));
  LayerLabel label;
  ASSIGN_OR_RETURN(label.digest, DigestMember(json, "digest"));
  ASSIGN_OR_RETURN(label.size, UintMember(json, "size"));
  ASSIGN_OR_RETURN(label.diff_id, DigestMember(json, "diffID"));
  ASSIGN_OR_RETURN(label.kind, StringMember(json, "kind"));
  return label;
}

}  // namespace

std::string IndexRef::ToJson() const {
  return DumpJson(
      Json{{"version", version}, {"offset", offset}, {"length", length}, {"root", root.text()}});
}

absl::StatusOr<IndexRef> IndexRef::FromJson(std::string_view json) {
  absl::StatusOr<IndexRef> ref = ParseIndexRef(json);
  if (!ref.ok()) return Annotate(ref.status(), kIndexAnnotation);
  return ref;
}

absl::StatusOr<std::string> LayerLabel::ToJson() const {
  std::string text = DumpJson(Json{{"version", 1},
                                   {"digest", digest.text()},
                                   {"size", size},
                                   {"diffID", diff_id.text()},
                                   {"kind", kind}});
  const size_t length = std::string_view(kLayerLabel).size() + text.size();
  if (length > kMaxLabelBytes)
    return InvalidArgument("{}: {} bytes with its key, containerd allows {}", kLayerLabel, length,
                           kMaxLabelBytes);
  return text;
}

absl::StatusOr<LayerLabel> LayerLabel::FromJson(std::string_view json) {
  absl::StatusOr<LayerLabel> label = ParseLayerLabel(json);
  if (!label.ok()) return Annotate(label.status(), kLayerLabel);
  return label;
}

}  // namespace kapsule::oci
