#include "kapsule-ctl/node_content.h"

#include <absl/time/clock.h>

#include <algorithm>

#include "kapsule-ctl/content_labels.h"

namespace kapsule::ctl {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

}  // namespace

absl::Status NodeContent::Put(const oci::Descriptor& blob, const std::string& bytes,
                              const containerd::Labels& labels) {
  RETURN_IF_ERROR(client_.WriteBlob(
      ns_, blob, [&](const auto& sink) { return sink(AsBytes(bytes)); }, lease_, Soon()));
  return Label(blob.digest, labels);
}

absl::Status NodeContent::Fetch(const oci::Descriptor& blob, oci::ImageSource& source,
                                image::Progress& progress, const std::function<bool()>& cancelled) {
  uint64_t told = 0;
  const auto fetch = [&](const auto& sink) {
    return source.ReadBlob(blob, [&](ByteSpan bytes) {
      if (cancelled()) return Cancelled("pull {}", source.name());
      told += bytes.size();
      progress.Advance(bytes.size());
      return sink(bytes);
    });
  };
  // However long it takes: the source notices where nothing comes any more.
  RETURN_IF_ERROR(client_.WriteBlob(ns_, blob, fetch, lease_, absl::InfiniteFuture()));
  progress.Advance(blob.size - std::min(told, blob.size));  // what was there
  return Label(blob.digest, {});
}

absl::Status NodeContent::Label(const oci::Digest& digest, const containerd::Labels& labels) {
  ASSIGN_OR_RETURN(const std::vector<containerd::ContentInfo> found,
                   client_.ListContent(ns_, "digest==" + digest.text(), 1, Soon()));
  if (found.empty()) return NotFound("blob {} has been removed meanwhile", digest.text());
  const containerd::Labels& has = found.front().labels;
  containerd::Labels wanted = has;
  for (const auto& [key, value] : labels) wanted[key] = value;
  AddSource(from_, &wanted);
  for (const auto& [key, value] : wanted) {
    if (const auto old = has.find(key); old != has.end() && old->second == value) continue;
    RETURN_IF_ERROR(client_.SetContentLabel(ns_, digest, key, value, Soon()));
  }
  return absl::OkStatus();
}

}  // namespace kapsule::ctl
