// The calls that make an image.
#include "core/containerd/client_calls.h"

namespace kapsule::containerd {
namespace {

// containerd takes messages of up to 16 MiB.
constexpr size_t kPieceBytes = 1 << 20;

snapshots::PrepareSnapshotRequest PrepareRequest(const std::string& snapshotter,
                                                 const std::string& key, const std::string& parent,
                                                 const Labels& labels) {
  snapshots::PrepareSnapshotRequest request;
  request.set_snapshotter(snapshotter);
  request.set_key(key);
  request.set_parent(parent);
  request.mutable_labels()->insert(labels.begin(), labels.end());
  return request;
}

void DescriptorToProto(const oci::Descriptor& descriptor, ::containerd::types::Descriptor* proto) {
  proto->set_media_type(descriptor.media_type);
  proto->set_digest(descriptor.digest.text());
  proto->set_size(static_cast<int64_t>(descriptor.size));
  proto->mutable_annotations()->insert(descriptor.annotations.begin(),
                                       descriptor.annotations.end());
}

// One Content.Write. containerd answers each message with where the next byte goes.
class BlobStream {
 public:
  BlobStream(content::Content::Stub& stub, Call& call, const oci::Descriptor& blob)
      : call_(call), stream_(stub.Write(call.get())) {
    request_.set_ref("kapsule-" + blob.digest.text());
    request_.set_total(static_cast<int64_t>(blob.size));
    request_.set_expected(blob.digest.text());
  }
  ~BlobStream() {
    call_.Cancel();
    Finish();
  }

  // False where containerd ended the call; Finish() tells why.
  bool Stat() { return Exchange(content::STAT); }
  bool Append(ByteSpan bytes) {
    while (!bytes.empty()) {
      const size_t n = std::min(bytes.size(), kPieceBytes - piece_.size());
      piece_ += AsText(bytes.first(n));
      bytes = bytes.subspan(n);
      if (piece_.size() == kPieceBytes && !Exchange(content::WRITE)) return false;
    }
    return true;
  }
  bool Commit() { return Exchange(content::COMMIT); }
  // Only the first call asks; its answer stays.
  const grpc::Status& Finish() {
    if (!ended_) ended_ = stream_->Finish();
    return *ended_;
  }

  // All of it has been written before, or is there for another namespace.
  bool IsComplete() const { return answer_.offset() == request_.total(); }
  void GoToEnd() { request_.set_offset(request_.total()); }

 private:
  bool Exchange(content::WriteAction action) {
    request_.set_action(action);
    request_.set_data(piece_);
    const auto written = static_cast<int64_t>(piece_.size());
    piece_.clear();
    if (!stream_->Write(request_) || !stream_->Read(&answer_)) return false;
    request_.set_offset(request_.offset() + written);
    return true;
  }

  Call& call_;
  const std::unique_ptr<
      grpc::ClientReaderWriter<content::WriteContentRequest, content::WriteContentResponse>>
      stream_;
  content::WriteContentRequest request_;
  content::WriteContentResponse answer_;
  std::string piece_;
  std::optional<grpc::Status> ended_;
};

}  // namespace

absl::Status Client::WriteBlob(const std::string& ns, const oci::Descriptor& blob,
                               const BlobReader& reader, const std::string& lease,
                               absl::Time deadline) {
  Call call(ns, deadline);
  call.SetLease(lease);
  BlobStream stream(stubs_->content, call, blob);
  const auto failure = [&] {
    const grpc::Status& end = stream.Finish();
    if (end.error_code() == grpc::StatusCode::ALREADY_EXISTS) return absl::OkStatus();
    if (end.ok()) return Unavailable("containerd at {}: ended a write early", address_);
    return Failure(end, fmt::format("write blob {}", blob.digest.text()));
  };
  if (!stream.Stat()) return failure();
  if (stream.IsComplete()) {
    stream.GoToEnd();
  } else {
    bool broken = false;
    const absl::Status read = reader([&](ByteSpan bytes) {
      broken = !stream.Append(bytes);
      return broken ? Unavailable("containerd takes no more") : absl::OkStatus();
    });
    if (broken) return failure();
    RETURN_IF_ERROR(read);
  }
  return stream.Commit() ? absl::OkStatus() : failure();
}

absl::Status Client::PutImage(const std::string& ns, const Image& image, absl::Time deadline) {
  images::CreateImageRequest create;
  create.mutable_image()->set_name(image.name);
  DescriptorToProto(image.target, create.mutable_image()->mutable_target());
  images::CreateImageResponse created;
  Call call(ns, deadline);
  const grpc::Status status = stubs_->images.Create(call.get(), create, &created);
  if (status.error_code() != grpc::StatusCode::ALREADY_EXISTS)
    return Failure(status, fmt::format("create image {}", image.name));
  images::UpdateImageRequest update;
  *update.mutable_image() = create.image();
  update.mutable_update_mask()->add_paths("target");
  images::UpdateImageResponse updated;
  Call again(ns, deadline);
  return Failure(stubs_->images.Update(again.get(), update, &updated),
                 fmt::format("update image {}", image.name));
}

absl::Status Client::PrepareSnapshot(const std::string& ns, const std::string& snapshotter,
                                     const std::string& key, const std::string& parent,
                                     const Labels& labels, const std::string& lease,
                                     absl::Time deadline) {
  Call call(ns, deadline);
  call.SetLease(lease);
  snapshots::PrepareSnapshotResponse response;
  return Failure(stubs_->snapshots.Prepare(
                     call.get(), PrepareRequest(snapshotter, key, parent, labels), &response),
                 fmt::format("prepare snapshot {}", key));
}

absl::StatusOr<oci::Digest> Client::Unpack(const std::string& ns, const std::string& snapshotter,
                                           const std::string& key, const std::string& parent,
                                           const Labels& labels, const oci::Descriptor& layer,
                                           const std::string& lease, absl::Time deadline) {
  Call prepare(ns, deadline);
  prepare.SetLease(lease);
  snapshots::PrepareSnapshotResponse prepared;
  RETURN_IF_ERROR(
      Failure(stubs_->snapshots.Prepare(
                  prepare.get(), PrepareRequest(snapshotter, key, parent, labels), &prepared),
              fmt::format("prepare snapshot {}", key)));
  Call apply(ns, deadline);
  apply.SetLease(lease);
  diff::ApplyRequest request;
  DescriptorToProto(layer, request.mutable_diff());
  *request.mutable_mounts() = prepared.mounts();
  diff::ApplyResponse response;
  RETURN_IF_ERROR(Failure(stubs_->diff.Apply(apply.get(), request, &response),
                          fmt::format("unpack layer {}", layer.digest.text())));
  return oci::Digest::Parse(response.applied().digest());
}

absl::Status Client::CommitSnapshot(const std::string& ns, const std::string& snapshotter,
                                    const std::string& name, const std::string& key,
                                    const Labels& labels, const std::string& lease,
                                    absl::Time deadline) {
  Call call(ns, deadline);
  call.SetLease(lease);
  snapshots::CommitSnapshotRequest request;
  request.set_snapshotter(snapshotter);
  request.set_name(name);
  request.set_key(key);
  request.mutable_labels()->insert(labels.begin(), labels.end());
  google::protobuf::Empty response;
  return Failure(stubs_->snapshots.Commit(call.get(), request, &response),
                 fmt::format("commit snapshot {}", key));
}

absl::StatusOr<Labels> Client::GetSnapshotLabels(const std::string& ns,
                                                 const std::string& snapshotter,
                                                 const std::string& key, absl::Time deadline) {
  Call call(ns, deadline);
  snapshots::StatSnapshotRequest request;
  request.set_snapshotter(snapshotter);
  request.set_key(key);
  snapshots::StatSnapshotResponse response;
  RETURN_IF_ERROR(Failure(stubs_->snapshots.Stat(call.get(), request, &response),
                          fmt::format("snapshot {} of {}", key, snapshotter)));
  return Labels(response.info().labels().begin(), response.info().labels().end());
}

}  // namespace kapsule::containerd
