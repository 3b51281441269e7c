#include "core/oci/manifest.h"

#include <algorithm>
#include <limits>

namespace kapsule::oci {
namespace {

constexpr size_t kMaxEntries = 1024;
constexpr size_t kMaxMediaTypeBytes = 255;

absl::Status CheckMediaType(const std::string& type) {
  const auto plain = [](char c) { return c > ' ' && c < 0x7f; };
  if (type.size() > kMaxMediaTypeBytes || !std::all_of(type.begin(), type.end(), plain))
    return InvalidArgument("not a media type");
  return absl::OkStatus();
}

absl::StatusOr<Annotations> ParseAnnotations(const Json& json) {
  Annotations annotations;
  const Json* member = FindMember(json, "annotations");
  if (member == nullptr) return annotations;
  if (!member->is_object()) return InvalidArgument("\"annotations\" is not an object");
  for (const auto& [key, value] : member->items()) {
    if (!value.is_string()) return InvalidArgument("an annotation is not a string");
    annotations.emplace(key, value.get<std::string>());
  }
  return annotations;
}

absl::Status ParsePlatform(const Json& json, Descriptor* descriptor) {
  const Json* platform = FindMember(json, "platform");
  if (platform == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::optional<std::string> os, OptionalString(*platform, "os"));
  ASSIGN_OR_RETURN(const std::optional<std::string> architecture,
                   OptionalString(*platform, "architecture"));
  descriptor->os = os.value_or("");
  descriptor->architecture = architecture.value_or("");
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Descriptor>> ParseDescriptors(const Json& json, const char* name) {
  ASSIGN_OR_RETURN(const Json* array, ArrayMember(json, name));
  if (array->size() > kMaxEntries)
    return InvalidArgument("{} {}, more than the limit of {}", array->size(), name, kMaxEntries);
  std::vector<Descriptor> descriptors;
  descriptors.reserve(array->size());
  for (const Json& entry : *array) {
    absl::StatusOr<Descriptor> descriptor = DescriptorFromJson(entry);
    if (!descriptor.ok())
      return Annotate(descriptor.status(), fmt::format("{}[{}]", name, descriptors.size()));
    descriptors.push_back(*std::move(descriptor));
  }
  return descriptors;
}

// The media type of a manifest or index: `oci` where the member is missing.
// Bytes that could be read as the other kind too (CVE-2021-41190) are refused:
// `foreign` names the other kind's members.
absl::StatusOr<std::string> CheckKind(const Json& json, const char* oci, const char* docker,
                                      std::initializer_list<const char*> foreign) {
  ASSIGN_OR_RETURN(const uint64_t version, UintMember(json, "schemaVersion"));
  if (version != 2) return InvalidArgument("\"schemaVersion\" is {}, not 2", version);
  ASSIGN_OR_RETURN(const std::optional<std::string> type, OptionalString(json, "mediaType"));
  if (type && *type != oci && *type != docker)
    return InvalidArgument("\"mediaType\" is not {}", oci);
  for (const char* name : foreign) {
    if (FindMember(json, name) != nullptr)
      return InvalidArgument("member \"{}\" does not belong into {}", name, oci);
  }
  return type.value_or(oci);
}

absl::StatusOr<Manifest> ManifestFromJson(const Json& json) {
  Manifest manifest;
  ASSIGN_OR_RETURN(manifest.media_type,
                   CheckKind(json, kManifestType, kDockerManifestType, {"manifests"}));
  ASSIGN_OR_RETURN(const std::optional<std::string> artifact_type,
                   OptionalString(json, "artifactType"));
  manifest.artifact_type = artifact_type.value_or("");
  RETURN_IF_ERROR(CheckMediaType(manifest.artifact_type));
  ASSIGN_OR_RETURN(const Json* config, ObjectMember(json, "config"));
  absl::StatusOr<Descriptor> config_descriptor = DescriptorFromJson(*config);
  if (!config_descriptor.ok()) return Annotate(config_descriptor.status(), "config");
  manifest.config = *std::move(config_descriptor);
  ASSIGN_OR_RETURN(manifest.layers, ParseDescriptors(json, "layers"));
  ASSIGN_OR_RETURN(manifest.annotations, ParseAnnotations(json));
  return manifest;
}

absl::StatusOr<Index> IndexFromJson(const Json& json) {
  RETURN_IF_ERROR(CheckKind(json, kIndexType, kDockerIndexType, {"config", "layers"}).status());
  Index index;
  ASSIGN_OR_RETURN(index.manifests, ParseDescriptors(json, "manifests"));
  return index;
}

absl::StatusOr<std::vector<Digest>> DiffIdsFromJson(const Json& json) {
  ASSIGN_OR_RETURN(const Json* rootfs, ObjectMember(json, "rootfs"));
  ASSIGN_OR_RETURN(const std::string type, StringMember(*rootfs, "type"));
  if (type != "layers") return InvalidArgument("\"rootfs.type\" is not \"layers\"");
  ASSIGN_OR_RETURN(const Json* array, ArrayMember(*rootfs, "diff_ids"));
  if (array->size() > kMaxEntries)
    return InvalidArgument("{} diff_ids, more than the limit of {}", array->size(), kMaxEntries);
  std::vector<Digest> diff_ids;
  for (const Json& entry : *array) {
    if (!entry.is_string()) return InvalidArgument("diff_ids[{}] is not a string", diff_ids.size());
    const absl::StatusOr<Digest> diff_id = Digest::Parse(entry.get<std::string>());
    if (!diff_id.ok())
      return Annotate(diff_id.status(), fmt::format("diff_ids[{}]", diff_ids.size()));
    diff_ids.push_back(*diff_id);
  }
  return diff_ids;
}

template <typename T>
absl::StatusOr<T> ParseAs(std::string_view bytes, const char* what,
                          absl::StatusOr<T> (*read)(const Json&)) {
  absl::StatusOr<Json> json = ParseJson(bytes, kMaxManifestBytes);
  if (!json.ok()) return Annotate(json.status(), what);
  absl::StatusOr<T> result = read(*json);
  if (!result.ok()) return Annotate(result.status(), what);
  return result;
}

}  // namespace

absl::StatusOr<Manifest> ParseManifest(std::string_view bytes) {
  return ParseAs(bytes, "image manifest", ManifestFromJson);
}

absl::StatusOr<Index> ParseIndex(std::string_view bytes) {
  return ParseAs(bytes, "image index", IndexFromJson);
}

absl::StatusOr<std::vector<Digest>> ParseDiffIds(std::string_view config_bytes) {
  return ParseAs(config_bytes, "image config", DiffIdsFromJson);
}

absl::StatusOr<Descriptor> DescriptorFromJson(const Json& json) {
  Descriptor descriptor;
  ASSIGN_OR_RETURN(descriptor.media_type, StringMember(json, "mediaType"));
  RETURN_IF_ERROR(CheckMediaType(descriptor.media_type));
  ASSIGN_OR_RETURN(const std::string digest, StringMember(json, "digest"));
  ASSIGN_OR_RETURN(descriptor.digest, Digest::Parse(digest));
  ASSIGN_OR_RETURN(descriptor.size, UintMember(json, "size"));
  // The specification's sizes are int64.
  if (descriptor.size > uint64_t{std::numeric_limits<int64_t>::max()})
    return InvalidArgument("\"size\" is larger than 2^63 - 1");
  ASSIGN_OR_RETURN(descriptor.annotations, ParseAnnotations(json));
  RETURN_IF_ERROR(ParsePlatform(json, &descriptor));
  return descriptor;
}

Json DescriptorToJson(const Descriptor& descriptor) {
  Json json = {{"mediaType", descriptor.media_type},
               {"digest", descriptor.digest.text()},
               {"size", descriptor.size}};
  if (!descriptor.annotations.empty()) json["annotations"] = descriptor.annotations;
  if (!descriptor.os.empty() || !descriptor.architecture.empty())
    json["platform"] = Json{{"architecture", descriptor.architecture}, {"os", descriptor.os}};
  return json;
}

std::string SerializeManifest(const Manifest& manifest) {
  Json json = {{"schemaVersion", 2},
               {"mediaType", manifest.media_type.empty() ? kManifestType : manifest.media_type}};
  if (!manifest.artifact_type.empty()) json["artifactType"] = manifest.artifact_type;
  json["config"] = DescriptorToJson(manifest.config);
  json["layers"] = Json::array();
  for (const Descriptor& layer : manifest.layers) json["layers"].push_back(DescriptorToJson(layer));
  if (!manifest.annotations.empty()) json["annotations"] = manifest.annotations;
  return DumpJson(json);
}

bool IsEncrypted(const std::string& media_type) { return media_type.ends_with("+encrypted"); }

}  // namespace kapsule::oci
