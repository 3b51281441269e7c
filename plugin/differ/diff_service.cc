#include "plugin/differ/diff_service.h"

#include <absl/strings/str_split.h>

#include <new>
#include <optional>
#include <string_view>

#include "core/base/log.h"
#include "core/base/printable.h"
#include "core/oci/model_layer.h"

namespace kapsule::differ {
namespace {

namespace api = containerd::services::diff::v1;
using Mounts = google::protobuf::RepeatedPtrField<containerd::types::Mount>;

constexpr std::string_view kUpper = "upperdir=";
constexpr std::string_view kLower = "lowerdir=";

// absl and gRPC number their codes alike.
grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), Message(status)};
}

absl::StatusOr<oci::Descriptor> DescriptorFromProto(const containerd::types::Descriptor& proto) {
  oci::Descriptor descriptor;
  ASSIGN_OR_RETURN(descriptor.digest, oci::Digest::Parse(proto.digest()));
  if (proto.size() < 0) return InvalidArgument("layer {} has a negative size", proto.digest());
  descriptor.size = static_cast<uint64_t>(proto.size());
  descriptor.media_type = proto.media_type();
  descriptor.annotations.insert(proto.annotations().begin(), proto.annotations().end());
  return descriptor;
}

// Where a layer is written: what a snapshotter answers to a Prepare is one mount.
std::optional<std::string> WrittenDirectory(const Mounts& mounts) {
  if (mounts.size() != 1) return std::nullopt;
  const containerd::types::Mount& mount = mounts[0];
  if (mount.type() == "bind") return mount.source();
  for (const std::string& option : mount.options()) {
    if (option.starts_with(kUpper)) return option.substr(kUpper.size());
  }
  return std::nullopt;
}

void AddDirectories(const Mounts& mounts, std::vector<std::string>& directories) {
  for (const containerd::types::Mount& mount : mounts) {
    directories.push_back(mount.source());
    for (const std::string& option : mount.options()) {
      if (!option.starts_with(kLower)) continue;
      for (const auto directory : absl::StrSplit(option.substr(kLower.size()), ':'))
        directories.emplace_back(directory.data(), directory.size());
    }
  }
}

absl::Status Apply(const SnapshotCalls& snapshots, const api::ApplyRequest& request,
                   api::ApplyResponse& response) {
  if (!request.diff().annotations().contains(oci::kLayerLabel)) return NotFound("no label");
  ASSIGN_OR_RETURN(const oci::Descriptor layer, DescriptorFromProto(request.diff()));
  ASSIGN_OR_RETURN(const oci::LayerLabel label, oci::FindLayerLabel(layer));
  const std::optional<std::string> directory = WrittenDirectory(request.mounts());
  if (!directory) return NotFound("the mounts are not those of a Prepare");
  RETURN_IF_ERROR(snapshots.claim(*directory, label));
  containerd::types::Descriptor& applied = *response.mutable_applied();
  applied.set_media_type(oci::kLayerTarType);
  applied.set_digest(label.diff_id.text());
  applied.set_size(request.diff().size());
  return absl::OkStatus();
}

// Whether the layer, or what was asked, is the business of another differ: one
// that is not Kapsule's, or that containerd had better unpack and compare.
bool IsForOthers(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsInvalidArgument(status);
}

}  // namespace

grpc::Status DiffService::Apply(grpc::ServerContext*, const api::ApplyRequest* request,
                                api::ApplyResponse* response) try {
  const absl::Status status = differ::Apply(snapshots_, *request, *response);
  if (absl::IsInvalidArgument(status))  // containerd only tells what the next differ said
    log::warn("a layer is unpacked as an ordinary one: {}", Printable(Message(status), 1000));
  if (IsForOthers(status))
    return {grpc::StatusCode::UNIMPLEMENTED, "no Kapsule layer to claim: " + Message(status)};
  return ToGrpc(status);
} catch (const std::bad_alloc&) {
  return {grpc::StatusCode::RESOURCE_EXHAUSTED, "no memory"};
}

grpc::Status DiffService::Diff(grpc::ServerContext*, const api::DiffRequest* request,
                               api::DiffResponse*) try {
  std::vector<std::string> directories;
  AddDirectories(request->left(), directories);
  AddDirectories(request->right(), directories);
  const absl::StatusOr<bool> encrypted = snapshots_.any_encrypted(directories);
  if (!encrypted.ok()) return ToGrpc(encrypted.status());
  if (*encrypted)
    return {grpc::StatusCode::FAILED_PRECONDITION,
            "below are the layers of an encrypted model, which a diff could store as plaintext"};
  return {grpc::StatusCode::UNIMPLEMENTED, "Kapsule makes no diffs"};
} catch (const std::bad_alloc&) {
  return {grpc::StatusCode::RESOURCE_EXHAUSTED, "no memory"};
}

}  // namespace kapsule::differ
