#include "snapshotter/snapshot_key.h"

namespace kapsule::snapshotter {
namespace {

constexpr std::string_view kExtract = "extract-";
constexpr std::string_view kImageVolumes = "/io.containerd.grpc.v1.cri/image-volumes/";
constexpr std::string_view kDigits = "0123456789";

std::optional<oci::Digest> ExtractedChain(std::string_view client) {
  const size_t space = client.find(' ');
  if (!client.starts_with(kExtract) || space == std::string_view::npos) return std::nullopt;
  absl::StatusOr<oci::Digest> chain = oci::Digest::Parse(client.substr(space + 1));
  if (!chain.ok()) return std::nullopt;
  return *std::move(chain);
}

// ".../image-volumes/<sandbox id>/<digest in hex>"
std::optional<oci::Digest> VolumeImage(std::string_view client) {
  absl::StatusOr<oci::Digest> image =
      oci::Digest::Parse(fmt::format("sha256:{}", client.substr(client.rfind('/') + 1)));
  if (!image.ok()) return std::nullopt;
  return *std::move(image);
}

}  // namespace

SnapshotKey SnapshotKey::Parse(std::string_view key) {
  SnapshotKey parsed;
  parsed.client = std::string(key);
  const size_t slash = key.find('/');
  if (slash != std::string_view::npos && slash > 0) {
    const size_t end = key.find_first_not_of(kDigits, slash + 1);
    if (end != std::string_view::npos && end > slash + 1 && key[end] == '/') {
      parsed.ns = std::string(key.substr(0, slash));
      parsed.client = std::string(key.substr(end + 1));
    }
  }
  parsed.extracted_chain = ExtractedChain(parsed.client);
  parsed.image_volume =
      parsed.client.starts_with('/') && parsed.client.find(kImageVolumes) != std::string::npos;
  if (parsed.image_volume) parsed.volume_image = VolumeImage(parsed.client);
  return parsed;
}

}  // namespace kapsule::snapshotter
