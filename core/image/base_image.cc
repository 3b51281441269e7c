#include "core/image/base_image.h"

#include <algorithm>
#include <array>
#include <utility>

namespace kapsule::image {
namespace {

constexpr char kOs[] = "linux";
constexpr char kArchitecture[] = "amd64";
constexpr char kDockerConfigType[] = "application/vnd.docker.container.image.v1+json";

// Docker's layer types and OCI's of the same bytes.
constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kLayerTypes = {{
    {"application/vnd.docker.image.rootfs.diff.tar.gzip",
     "application/vnd.oci.image.layer.v1.tar+gzip"},
    {"application/vnd.docker.image.rootfs.diff.tar.zstd",
     "application/vnd.oci.image.layer.v1.tar+zstd"},
    {"application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"},
}};

absl::StatusOr<std::string> OciLayerType(const std::string& type) {
  if (type.starts_with("application/vnd.oci.image.layer.v1.")) return type;
  for (const auto& [docker, oci] : kLayerTypes) {
    if (type == docker) return std::string(oci);
  }
  return Unimplemented("a layer of media type {}", type);
}

bool IsIndex(const std::string& media_type) {
  return media_type == oci::kIndexType || media_type == oci::kDockerIndexType;
}

absl::StatusOr<oci::Digest> ChoosePlatform(const oci::Index& index) {
  std::string others;
  for (const oci::Descriptor& manifest : index.manifests) {
    if (manifest.os == kOs && manifest.architecture == kArchitecture) return manifest.digest;
    others += fmt::format(" {}/{}", manifest.os, manifest.architecture);
  }
  // A layout that skopeo wrote names one image and no platform.
  if (index.manifests.size() == 1 && index.manifests[0].os.empty())
    return index.manifests[0].digest;
  return NotFound("no image for {}/{}, only:{}", kOs, kArchitecture, others);
}

absl::StatusOr<BaseImage> Read(oci::ImageSource& source) {
  ASSIGN_OR_RETURN(const ImageManifest found, ReadImageManifest(source));
  const oci::Manifest& manifest = found.manifest;
  const std::string& type = manifest.config.media_type;
  if (type != oci::kConfigType && type != kDockerConfigType)
    return Unimplemented("not a container image: its config is {}", type);
  ASSIGN_OR_RETURN(const std::string config, ReadConfig(source, manifest.config));
  BaseImage base;
  ASSIGN_OR_RETURN(base.config, ParseJson(config, oci::kMaxManifestBytes));
  ASSIGN_OR_RETURN(base.diff_ids, oci::ParseDiffIds(config));
  base.layers = manifest.layers;
  if (base.diff_ids.size() != base.layers.size())
    return InvalidArgument("{} layers and {} diff_ids", base.layers.size(), base.diff_ids.size());
  for (oci::Descriptor& layer : base.layers) {
    ASSIGN_OR_RETURN(layer.media_type, OciLayerType(layer.media_type));
  }
  return base;
}

}  // namespace

absl::StatusOr<ImageManifest> ReadImageManifest(oci::ImageSource& source) {
  ASSIGN_OR_RETURN(oci::ImageSource::ManifestBytes found, source.GetManifest(std::nullopt));
  ImageManifest image;
  if (IsIndex(found.media_type)) {
    ASSIGN_OR_RETURN(const oci::Index index, oci::ParseIndex(found.bytes));
    ASSIGN_OR_RETURN(const oci::Digest digest, ChoosePlatform(index));
    image.index = std::move(found);
    ASSIGN_OR_RETURN(found, source.GetManifest(digest));
  }
  ASSIGN_OR_RETURN(image.manifest, oci::ParseManifest(found.bytes));
  image.digest = oci::Digest::Of(AsBytes(found.bytes));
  image.original = std::move(found);
  return image;
}

absl::StatusOr<std::string> ReadConfig(oci::ImageSource& source, const oci::Descriptor& config) {
  if (config.size > oci::kMaxManifestBytes)
    return InvalidArgument("config of {} bytes, more than the limit of {}", config.size,
                           oci::kMaxManifestBytes);
  std::string bytes;
  RETURN_IF_ERROR(source.ReadBlob(config, [&bytes](ByteSpan piece) {
    bytes += AsText(piece);
    return absl::OkStatus();
  }));
  return bytes;
}

absl::StatusOr<BaseImage> ReadBaseImage(oci::ImageSource& source) {
  absl::StatusOr<BaseImage> base = Read(source);
  if (!base.ok()) return Annotate(base.status(), "base image " + source.name());
  return base;
}

absl::Status CopyBlob(oci::ImageSource& source, oci::ImageTarget& target,
                      const oci::Descriptor& blob,
                      const std::function<absl::Status(uint64_t)>& on_written) {
  ASSIGN_OR_RETURN(const bool present, target.HasBlob(blob.digest, blob.size));
  if (present) return on_written(blob.size);
  ASSIGN_OR_RETURN(const std::unique_ptr<oci::BlobUpload> upload, target.StartBlob(blob.size));
  RETURN_IF_ERROR(source.ReadBlob(blob, [&](ByteSpan piece) {
    RETURN_IF_ERROR(upload->Write(piece));
    return on_written(piece.size());
  }));
  return upload->Commit(blob.digest, blob.size);
}

}  // namespace kapsule::image
