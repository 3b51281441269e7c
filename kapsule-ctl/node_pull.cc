#include "kapsule-ctl/node_pull.h"

#include <absl/time/clock.h>

#include "core/base/secret.h"
#include "core/base/unix_socket.h"
#include "kapsule-ctl/container_image.h"
#include "kapsule-ctl/content_labels.h"
#include "kapsule-ctl/node_content.h"

namespace kapsule::ctl {
namespace {

constexpr char kGcSnapshot[] = "containerd.io/gc.ref.snapshot.";
constexpr char kUncompressed[] = "containerd.io/uncompressed";
constexpr absl::Duration kCallTime = absl::Seconds(60);
constexpr absl::Duration kUnpackTime = absl::Hours(2);
constexpr absl::Duration kLeaseLifetime = absl::Hours(24);

using State = PulledLayer::State;

absl::Time Soon() { return absl::Now() + kCallTime; }

absl::StatusOr<std::string> RandomName() {
  std::byte random[8];
  RETURN_IF_ERROR(FillRandom(random));
  return ToHex(random);
}

// The same for all who pull the same, so that what was interrupted is gone on with.
std::string LeaseOf(const ContainerImage& image, const std::string& snapshotter) {
  const std::string what = DescriptorOf(image.top()).digest.text() + snapshotter;
  return "kapsule-pull-" + oci::Digest::Of(AsBytes(what)).hex().substr(0, 16);
}

class NodePull {
 public:
  NodePull(oci::ImageSource& source, const oci::Reference& reference, const ContainerImage& image,
           const NodePullOptions& options, image::Progress& progress)
      : source_(source),
        reference_(reference),
        image_(image),
        options_(options),
        progress_(progress),
        client_(options.containerd),
        lease_(LeaseOf(image, options.snapshotter)),
        content_(client_, options_.ns, lease_, reference_) {}

  absl::StatusOr<PulledImage> Run() {
    RETURN_IF_ERROR(FindLayers());
    const absl::Status leased = client_.CreateLease(options_.ns, lease_, kLeaseLifetime, Soon());
    if (!leased.ok() && !absl::IsAlreadyExists(leased)) return leased;
    const absl::Status status = RunLeased();
    const bool to_be_resumed = absl::IsCancelled(status) || absl::IsUnavailable(status) ||
                               absl::IsDeadlineExceeded(status);
    if (!to_be_resumed)
      client_.DeleteLease(options_.ns, lease_, Soon()).IgnoreError();  // it would expire
    RETURN_IF_ERROR(status);
    return std::move(result_);
  }

 private:
  absl::Status RunLeased() {
    RETURN_IF_ERROR(PutDocuments());
    RETURN_IF_ERROR(FetchLayers());
    RETURN_IF_ERROR(PutRecord());
    for (size_t i = present_; i < image_.layers().size(); ++i) {
      RETURN_IF_ERROR(CheckCancelled());
      RETURN_IF_ERROR(image_.is_model[i] ? Register(i) : Unpack(i));
    }
    return KeepSnapshots();
  }

  absl::Status CheckCancelled() const {
    return options_.cancelled() ? Cancelled("pull {}", source_.name()) : absl::OkStatus();
  }

  // Which layers have a snapshot: those below one that has.
  absl::Status FindLayers() {
    for (size_t i = 0; i < image_.layers().size(); ++i)
      result_.layers.push_back({image_.layers()[i], image_.chain_ids[i], State::kPresent});
    for (; present_ < image_.layers().size(); ++present_) {
      const absl::StatusOr<containerd::Labels> labels = client_.GetSnapshotLabels(
          options_.ns, options_.snapshotter, image_.chain_ids[present_].text(), Soon());
      if (absl::IsNotFound(labels.status())) break;
      if (absl::IsInvalidArgument(labels.status()))
        return FailedPrecondition("{}: is it in containerd's proxy_plugins? Or give --snapshotter",
                                  Message(labels.status()));
      RETURN_IF_ERROR(labels.status());
      if (image_.is_model[present_]) RETURN_IF_ERROR(CheckSameBlob(present_, *labels));
    }
    return absl::OkStatus();
  }

  absl::Status CheckSameBlob(size_t i, const containerd::Labels& labels) const {
    const auto text = labels.find(oci::kLayerLabel);
    if (text == labels.end()) return absl::OkStatus();
    const absl::StatusOr<oci::LayerLabel> label = oci::LayerLabel::FromJson(text->second);
    if (!label.ok() || label->digest == image_.layers()[i].digest) return absl::OkStatus();
    return FailedPrecondition(
        "layer {} is here as blob {}, {} has it as {}: remove the other image first",
        image_.chain_ids[i].text(), label->digest.text(), source_.name(),
        image_.layers()[i].digest.text());
  }

  absl::Status PutDocuments() {
    const image::ImageManifest& manifest = image_.manifest;
    RETURN_IF_ERROR(content_.Put(manifest.manifest.config, image_.config, {}));
    RETURN_IF_ERROR(content_.Put(DescriptorOf(manifest.original), manifest.original.bytes,
                                 LabelsOfManifest(manifest.manifest)));
    if (!manifest.index) return absl::OkStatus();
    ASSIGN_OR_RETURN(const oci::Index index, oci::ParseIndex(manifest.index->bytes));
    return content_.Put(DescriptorOf(*manifest.index), manifest.index->bytes, LabelsOfIndex(index));
  }

  absl::Status FetchLayers() {
    std::vector<const oci::Descriptor*> ordinary;
    for (size_t i = present_; i < image_.layers().size(); ++i) {
      if (!image_.is_model[i]) ordinary.push_back(&image_.layers()[i]);
    }
    for (size_t i = 0; i < ordinary.size(); ++i) {
      progress_.StartLayer(i + 1, ordinary.size(), ordinary[i]->digest.text(), ordinary[i]->size);
      RETURN_IF_ERROR(content_.Fetch(*ordinary[i], source_, progress_, options_.cancelled));
      progress_.FinishLayer();
    }
    return absl::OkStatus();
  }

  absl::Status PutRecord() {
    const containerd::Image image{reference_.text(), DescriptorOf(image_.top())};
    result_.digest = image.target.digest;
    const absl::StatusOr<containerd::Image> known =
        client_.GetImage(options_.ns, image.name, Soon());
    if (known.ok() && known->target.digest == image.target.digest) return absl::OkStatus();
    result_.changed = true;
    return client_.PutImage(options_.ns, image, Soon());
  }

  std::string Parent(size_t i) const { return i == 0 ? "" : image_.chain_ids[i - 1].text(); }

  absl::StatusOr<std::string> NewKey(size_t i) const {
    ASSIGN_OR_RETURN(const std::string random, RandomName());
    return fmt::format("extract-{}-{} {}", absl::ToUnixNanos(absl::Now()), random,
                       image_.chain_ids[i].text());
  }

  // The snapshotter answers that the layer exists.
  absl::Status Register(size_t i) {
    const oci::Descriptor& layer = image_.layers()[i];
    ASSIGN_OR_RETURN(const std::string key, NewKey(i));
    const absl::Status status =
        client_.PrepareSnapshot(options_.ns, options_.snapshotter, key, Parent(i),
                                SnapshotLabels(layer, image_.chain_ids[i]), lease_, Soon());
    if (status.ok()) {
      client_.RemoveSnapshot(options_.ns, options_.snapshotter, key, Soon()).IgnoreError();
      return FailedPrecondition(
          "snapshotter {} does not know Kapsule layers: give the name that kapsule-snapshotter has"
          " in containerd's proxy_plugins by --snapshotter",
          options_.snapshotter);
    }
    if (!absl::IsAlreadyExists(status)) return Annotate(status, "layer " + layer.digest.text());
    return Made(i, State::kRegistered);
  }

  absl::Status Unpack(size_t i) {
    ASSIGN_OR_RETURN(const std::string key, NewKey(i));
    const absl::Status status = UnpackAs(key, i);
    if (!status.ok())
      client_.RemoveSnapshot(options_.ns, options_.snapshotter, key, Soon()).IgnoreError();
    // By another client, in the meantime.
    if (!status.ok() && !absl::IsAlreadyExists(status)) return status;
    return Made(i, State::kUnpacked);
  }

  absl::Status UnpackAs(const std::string& key, size_t i) {
    const oci::Descriptor& layer = image_.layers()[i];
    const containerd::Labels labels = SnapshotLabels(layer, image_.chain_ids[i]);
    ASSIGN_OR_RETURN(const oci::Digest diff_id,
                     client_.Unpack(options_.ns, options_.snapshotter, key, Parent(i), labels,
                                    layer, lease_, absl::Now() + kUnpackTime));
    if (diff_id != image_.diff_ids[i])
      return DataLoss("layer {} unpacks to {}, the config names {}", layer.digest.text(),
                      diff_id.text(), image_.diff_ids[i].text());
    RETURN_IF_ERROR(client_.CommitSnapshot(options_.ns, options_.snapshotter,
                                           image_.chain_ids[i].text(), key, labels, lease_,
                                           Soon()));
    return content_.Label(layer.digest, {{kUncompressed, diff_id.text()}});
  }

  absl::Status Made(size_t i, State state) {
    result_.layers[i].state = state;
    result_.changed = true;
    return absl::OkStatus();
  }

  // After the lease the config refers to the snapshots, as after unpacking by
  // containerd's client. Those that were present belonged to no lease.
  absl::Status KeepSnapshots() {
    if (image_.chain_ids.empty()) return absl::OkStatus();
    const std::string top = image_.chain_ids.back().text();
    RETURN_IF_ERROR(content_.Label(image_.manifest.manifest.config.digest,
                                   {{kGcSnapshot + options_.snapshotter, top}}));
    const absl::Status there =
        client_.GetSnapshotLabels(options_.ns, options_.snapshotter, top, Soon()).status();
    if (absl::IsNotFound(there))
      return Unavailable(
          "another image was removed meanwhile, with layers of this one: pull again");
    return there;
  }

  oci::ImageSource& source_;
  const oci::Reference& reference_;
  const ContainerImage& image_;
  const NodePullOptions& options_;
  image::Progress& progress_;
  containerd::Client client_;
  const std::string lease_;
  NodeContent content_;
  size_t present_ = 0;  // layers from the bottom that have a snapshot
  PulledImage result_;
};

// gRPC would tell less.
absl::Status CheckContainerd(const std::filesystem::path& address) {
  const absl::Status status = ConnectUnix(address, SOCK_STREAM).status();
  if (absl::IsNotFound(status))
    return NotFound("no socket {}: is containerd running, with this address?", address.string());
  if (absl::IsPermissionDenied(status))
    return PermissionDenied("{} is root's alone: run this as root", address.string());
  if (absl::IsUnavailable(status))
    return Unavailable("nobody listens on {}: containerd has ended", address.string());
  return status;
}

}  // namespace

absl::StatusOr<PulledImage> PullToNode(oci::ImageSource& source, const oci::Reference& reference,
                                       const NodePullOptions& options, image::Progress& progress) {
  RETURN_IF_ERROR(CheckContainerd(options.containerd));
  ASSIGN_OR_RETURN(const ContainerImage image, ReadContainerImage(source));
  return NodePull(source, reference, image, options, progress).Run();
}

}  // namespace kapsule::ctl
