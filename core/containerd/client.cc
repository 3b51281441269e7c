#include "core/containerd/client.h"

#include "core/base/printable.h"
#include "core/containerd/client_calls.h"

namespace kapsule::containerd {
namespace {

// containerd's own limit; a list of images may be longer than gRPC's default.
constexpr int kMaxMessageBytes = 16 << 20;
constexpr size_t kMaxErrorBytes = 2000;

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return grpc::CreateCustomChannel("unix://" + address, grpc::InsecureChannelCredentials(), args);
}

absl::StatusOr<Image> ImageFromProto(const images::Image& record) {
  Image image{.name = record.name(), .target = {}};
  ASSIGN_OR_RETURN(image.target.digest, oci::Digest::Parse(record.target().digest()));
  if (record.target().size() < 0)
    return InvalidArgument("image {}: its target has a negative size", record.name());
  image.target.size = static_cast<uint64_t>(record.target().size());
  image.target.media_type = record.target().media_type();
  return image;
}

}  // namespace

Client::Client(std::filesystem::path address)
    : address_(address.string()), stubs_(std::make_unique<Stubs>(Connect(address_))) {}

Client::~Client() = default;

// gRPC's codes and absl's have the same numbers.
absl::Status Client::Failure(const grpc::Status& status, const std::string& what) const {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      fmt::format("containerd at {}: {}: {}", address_, what,
                                  Printable(status.error_message(), kMaxErrorBytes)));
}

absl::StatusOr<std::vector<std::string>> Client::ListNamespaces(absl::Time deadline) {
  Call call("", deadline);
  namespaces::ListNamespacesResponse response;
  RETURN_IF_ERROR(
      Failure(stubs_->namespaces.List(call.get(), namespaces::ListNamespacesRequest(), &response),
              "list namespaces"));
  std::vector<std::string> names;
  for (const auto& ns : response.namespaces()) names.push_back(ns.name());
  return names;
}

absl::StatusOr<std::vector<Image>> Client::ListImages(const std::string& ns, absl::Time deadline) {
  Call call(ns, deadline);
  images::ListImagesResponse response;
  RETURN_IF_ERROR(Failure(stubs_->images.List(call.get(), images::ListImagesRequest(), &response),
                          fmt::format("list images of namespace {}", ns)));
  std::vector<Image> result;
  for (const images::Image& record : response.images()) {
    absl::StatusOr<Image> image = ImageFromProto(record);
    if (image.ok()) result.push_back(*std::move(image));
  }
  return result;
}

absl::StatusOr<Image> Client::GetImage(const std::string& ns, const std::string& name,
                                       absl::Time deadline) {
  Call call(ns, deadline);
  images::GetImageRequest request;
  request.set_name(name);
  images::GetImageResponse response;
  RETURN_IF_ERROR(Failure(stubs_->images.Get(call.get(), request, &response),
                          fmt::format("image {} of namespace {}", name, ns)));
  return ImageFromProto(response.image());
}

absl::StatusOr<std::string> Client::ReadBlob(const std::string& ns, const oci::Digest& digest,
                                             size_t limit, absl::Time deadline) {
  Call call(ns, deadline);
  content::ReadContentRequest request;
  request.set_digest(digest.text());
  const auto reader = stubs_->content.Read(call.get(), request);
  std::string bytes;
  bool too_long = false;
  for (content::ReadContentResponse part; !too_long && reader->Read(&part);) {
    too_long = part.data().size() > limit - bytes.size();
    if (!too_long) bytes += part.data();
  }
  if (too_long) call.Cancel();
  const grpc::Status end = reader->Finish();
  if (too_long)
    return InvalidArgument("containerd at {}: blob {} is longer than {} bytes", address_,
                           digest.text(), limit);
  RETURN_IF_ERROR(Failure(end, fmt::format("read blob {}", digest.text())));
  if (oci::Digest::Of(AsBytes(bytes)) != digest)
    return DataLoss("containerd at {}: blob {} has other bytes than its digest says", address_,
                    digest.text());
  return bytes;
}

absl::StatusOr<std::vector<ContentInfo>> Client::ListContent(const std::string& ns,
                                                             const std::string& filter,
                                                             size_t limit, absl::Time deadline) {
  Call call(ns, deadline);
  content::ListContentRequest request;
  request.add_filters(filter);
  const auto reader = stubs_->content.List(call.get(), request);
  std::vector<ContentInfo> result;
  bool enough = false;
  for (content::ListContentResponse part; !enough && reader->Read(&part);) {
    for (const content::Info& info : part.info()) {
      enough = result.size() == limit;
      if (enough) break;
      const absl::StatusOr<oci::Digest> digest = oci::Digest::Parse(info.digest());
      if (!digest.ok() || info.size() < 0) continue;
      result.push_back({*digest, static_cast<uint64_t>(info.size()),
                        Labels(info.labels().begin(), info.labels().end())});
    }
  }
  if (enough) call.Cancel();
  const grpc::Status end = reader->Finish();
  if (!enough) RETURN_IF_ERROR(Failure(end, fmt::format("list content with {}", filter)));
  return result;
}

absl::Status Client::SetContentLabel(const std::string& ns, const oci::Digest& digest,
                                     const std::string& key, const std::string& value,
                                     absl::Time deadline) {
  Call call(ns, deadline);
  content::UpdateRequest request;
  request.mutable_info()->set_digest(digest.text());
  (*request.mutable_info()->mutable_labels())[key] = value;
  request.mutable_update_mask()->add_paths("labels." + key);
  content::UpdateResponse response;
  return Failure(stubs_->content.Update(call.get(), request, &response),
                 fmt::format("label blob {} with {}", digest.text(), key));
}

absl::StatusOr<Container> Client::GetContainer(const std::string& ns, const std::string& id,
                                               absl::Time deadline) {
  Call call(ns, deadline);
  containers::GetContainerRequest request;
  request.set_id(id);
  containers::GetContainerResponse response;
  RETURN_IF_ERROR(Failure(stubs_->containers.Get(call.get(), request, &response),
                          fmt::format("container {} of namespace {}", id, ns)));
  const containers::Container& record = response.container();
  return Container{record.id(), record.image(), record.snapshotter(), record.snapshot_key()};
}

absl::Status Client::RemoveSnapshot(const std::string& ns, const std::string& snapshotter,
                                    const std::string& key, absl::Time deadline) {
  Call call(ns, deadline);
  snapshots::RemoveSnapshotRequest request;
  request.set_snapshotter(snapshotter);
  request.set_key(key);
  google::protobuf::Empty response;
  return Failure(stubs_->snapshots.Remove(call.get(), request, &response),
                 fmt::format("remove snapshot {}", key));
}

absl::Status Client::CreateLease(const std::string& ns, const std::string& id,
                                 absl::Duration lifetime, absl::Time deadline) {
  Call call(ns, deadline);
  leases::CreateRequest request;
  request.set_id(id);
  (*request.mutable_labels())["containerd.io/gc.expire"] =
      absl::FormatTime(absl::RFC3339_sec, absl::Now() + lifetime, absl::UTCTimeZone());
  leases::CreateResponse response;
  return Failure(stubs_->leases.Create(call.get(), request, &response),
                 fmt::format("create lease {}", id));
}

absl::Status Client::DeleteLease(const std::string& ns, const std::string& id,
                                 absl::Time deadline) {
  Call call(ns, deadline);
  leases::DeleteRequest request;
  request.set_id(id);
  google::protobuf::Empty response;
  return Failure(stubs_->leases.Delete(call.get(), request, &response),
                 fmt::format("delete lease {}", id));
}

}  // namespace kapsule::containerd
