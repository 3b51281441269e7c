// OCI image manifests and configs, as far as Kapsule reads and writes them
// (image-spec manifest.md, config.md). Parsed views; whoever needs a digest
// keeps the original bytes beside them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/oci/annotations.h"
#include "core/oci/digest.h"

namespace kapsule::oci {

inline constexpr char kManifestType[] = "application/vnd.oci.image.manifest.v1+json";
inline constexpr char kIndexType[] = "application/vnd.oci.image.index.v1+json";
inline constexpr char kConfigType[] = "application/vnd.oci.image.config.v1+json";
inline constexpr char kDockerManifestType[] =
    "application/vnd.docker.distribution.manifest.v2+json";
inline constexpr char kDockerIndexType[] =
    "application/vnd.docker.distribution.manifest.list.v2+json";
inline constexpr char kLayerTarType[] = "application/vnd.oci.image.layer.v1.tar";
inline constexpr char kLayerTarEncryptedType[] = "application/vnd.oci.image.layer.v1.tar+encrypted";
inline constexpr char kModelArtifactType[] = "application/vnd.kapsule.model.v1+json";
inline constexpr size_t kMaxManifestBytes = 4 << 20;

struct Descriptor {
  std::string media_type;
  Digest digest;
  uint64_t size = 0;
  Annotations annotations;
  // index entries only
  std::string os, architecture;
};

struct Manifest {
  std::string media_type;
  std::string artifact_type;
  Descriptor config;
  std::vector<Descriptor> layers;
  Annotations annotations;
};

// An index (or Docker manifest list).
struct Index {
  std::vector<Descriptor> manifests;
};

// At most kMaxManifestBytes, 1,024 layers. InvalidArgument says which member.
absl::StatusOr<Manifest> ParseManifest(std::string_view bytes);
absl::StatusOr<Index> ParseIndex(std::string_view bytes);
std::string SerializeManifest(const Manifest& manifest);

Json DescriptorToJson(const Descriptor& descriptor);
absl::StatusOr<Descriptor> DescriptorFromJson(const Json& json);

// diff_ids of an image config, bottom to top.
absl::StatusOr<std::vector<Digest>> ParseDiffIds(std::string_view config_bytes);

// True for "…+encrypted" layer types.
bool IsEncrypted(const std::string& media_type);

}  // namespace kapsule::oci
