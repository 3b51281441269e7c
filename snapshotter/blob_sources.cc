#include "snapshotter/blob_sources.h"

#include <absl/strings/str_split.h>

#include <algorithm>

#include "core/base/log.h"
#include "core/oci/reference.h"

namespace kapsule::snapshotter {
namespace {

constexpr std::string_view kSourceLabel = "containerd.io/distribution.source.";
constexpr size_t kMaxSources = 16;

// CRI also records images by their config's digest.
bool IsDigest(std::string_view name) { return name.starts_with("sha256:"); }

// containerd's label lacks the port: the source that the image record names, again.
bool IsWithoutPort(const oci::Reference& noted, const std::optional<oci::Reference>& named) {
  return named && noted.repository == named->repository &&
         named->host.starts_with(noted.host + ":");
}

}  // namespace

std::vector<std::string> SourcesOf(containerd::Client& client, const std::string& ns,
                                   const oci::Digest& manifest, const std::string& name,
                                   absl::Time deadline) {
  std::vector<std::string> sources;
  const auto add = [&](oci::Reference reference) {
    if (sources.size() == kMaxSources) return;
    reference.tag.clear();
    reference.digest = manifest;
    std::string source = reference.text();
    if (std::find(sources.begin(), sources.end(), source) == sources.end())
      sources.push_back(std::move(source));
  };
  std::optional<oci::Reference> named;
  if (!name.empty() && !IsDigest(name)) {
    if (auto reference = oci::Reference::Parse(name); reference.ok()) named = *std::move(reference);
  }
  if (named) add(*named);
  const absl::StatusOr<std::vector<containerd::ContentInfo>> found =
      client.ListContent(ns, "digest==" + manifest.text(), 1, deadline);
  if (!found.ok())
    log::warn("where manifest {} is from: {}", manifest.text(), Describe(found.status()));
  if (!found.ok() || found->empty()) return sources;
  for (const auto& [key, value] : found->front().labels) {
    if (!key.starts_with(kSourceLabel)) continue;
    for (const auto repository : absl::StrSplit(value, ',')) {
      const auto noted = oci::Reference::Parse(
          fmt::format("{}/{}", key.substr(kSourceLabel.size()), std::string(repository)));
      if (noted.ok() && !IsWithoutPort(*noted, named)) add(*noted);
    }
  }
  return sources;
}

}  // namespace kapsule::snapshotter
