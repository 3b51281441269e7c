#include "kapsule-ctl/content_labels.h"

#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>

#include <set>

namespace kapsule::ctl {
namespace {

constexpr char kGcPrefix[] = "containerd.io/gc.ref.content.";
constexpr char kSourcePrefix[] = "containerd.io/distribution.source.";
constexpr char kSnapshotPrefix[] = "containerd.io/snapshot/";
constexpr char kSnapshotRef[] = "containerd.io/snapshot.ref";

bool IsManifest(const std::string& type) {
  return type == oci::kManifestType || type == oci::kDockerManifestType;
}

bool IsLayer(const std::string& type) {
  return type.starts_with("application/vnd.oci.image.layer.") ||
         type.starts_with("application/vnd.docker.image.rootfs.");
}

// "m.0", "m.1", …: each kind of child is counted by itself.
class Children {
 public:
  void Add(const std::string& kind, const oci::Digest& digest) {
    labels_[fmt::format("{}{}{}", kGcPrefix, kind, counts_[kind]++)] = digest.text();
  }
  containerd::Labels Take() { return std::move(labels_); }

 private:
  containerd::Labels labels_;
  std::map<std::string, size_t> counts_;
};

}  // namespace

containerd::Labels LabelsOfManifest(const oci::Manifest& manifest) {
  Children children;
  for (const oci::Descriptor& layer : manifest.layers)
    children.Add(IsLayer(layer.media_type) ? "l." : "", layer.digest);
  containerd::Labels labels = children.Take();
  labels[std::string(kGcPrefix) + "config"] = manifest.config.digest.text();
  return labels;
}

containerd::Labels LabelsOfIndex(const oci::Index& index) {
  Children children;
  for (const oci::Descriptor& entry : index.manifests)
    children.Add(IsManifest(entry.media_type) ? "m." : "", entry.digest);
  return children.Take();
}

void AddSource(const oci::Reference& from, containerd::Labels* labels) {
  const size_t name_end = from.host.starts_with('[') ? from.host.find(']') : 0;
  std::string host = from.host.substr(0, from.host.find(':', name_end));
  std::erase_if(host, [](char c) { return c == '[' || c == ']'; });
  const std::string key = kSourcePrefix + host;
  std::string& value = (*labels)[key];
  std::set<std::string> repositories = absl::StrSplit(value, ',', absl::SkipEmpty());
  repositories.insert(from.repository);
  const std::string joined = absl::StrJoin(repositories, ",");
  if (key.size() + joined.size() <= oci::kMaxLabelBytes) value = joined;
  if (value.empty()) labels->erase(key);
}

containerd::Labels SnapshotLabels(const oci::Descriptor& layer, const oci::Digest& chain_id) {
  containerd::Labels labels = {{kSnapshotRef, chain_id.text()}};
  for (const auto& [key, value] : layer.annotations) {
    if (key.starts_with(kSnapshotPrefix)) labels.emplace(key, value);
  }
  return labels;
}

}  // namespace kapsule::ctl
