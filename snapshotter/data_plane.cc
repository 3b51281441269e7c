#include "snapshotter/data_plane.h"

#include <absl/time/clock.h>

#include <algorithm>

#include "core/control/control_wire.h"
#include "core/keyprovider/wire.h"
#include "snapshotter/fuse_supervisor.h"

namespace kapsule::snapshotter {
namespace fs = std::filesystem;
namespace {

uint32_t TimeoutMs(absl::Time deadline) {
  const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
  return static_cast<uint32_t>(std::clamp<int64_t>(left, 1, 3'600'000));
}

absl::StatusOr<UniqueFd> RecordMemfd(const oci::Annotations& annotations, bool remote) {
  const control::LayerRecord record = {keyprovider::AnnotationsToJson(annotations), remote};
  return SealedMemfd("record", AsBytes(control::RecordToJson(record)));
}

absl::StatusOr<UniqueFd> AnnotationsMemfd(const oci::Annotations& annotations) {
  return SealedMemfd("annotations", AsBytes(keyprovider::AnnotationsToJson(annotations)));
}

}  // namespace

DataPlane::DataPlane(std::unique_ptr<FuseSupervisor> supervisor, fs::path views)
    : supervisor_(std::move(supervisor)), views_(std::move(views)) {}
DataPlane::~DataPlane() = default;

absl::StatusOr<std::unique_ptr<DataPlane>> DataPlane::Start(Options options) {
  if (!options.views.is_absolute() || !options.views.has_filename())
    return InvalidArgument("{} is not an absolute path of a folder", options.views.string());
  // Mount points are known by their real paths; the last part may be a dead mount.
  RETURN_IF_ERROR(MakeDirs(options.views.parent_path(), 0700));
  std::error_code error;
  const fs::path parent = fs::canonical(options.views.parent_path(), error);
  if (error) return ErrnoStatus(error.value(), options.views.string());
  options.views = parent / options.views.filename();
  const fs::path views = options.views;
  auto supervisor = std::make_unique<FuseSupervisor>(std::move(options));
  RETURN_IF_ERROR(supervisor->Start());
  return std::unique_ptr<DataPlane>(new DataPlane(std::move(supervisor), views));
}

absl::StatusOr<fs::path> DataPlane::Open(const oci::Digest& digest, uint64_t size, bool encrypted,
                                         UniqueFd blob, const oci::Annotations& annotations,
                                         absl::Time deadline, bool remote) {
  ASSIGN_OR_RETURN(const UniqueFd record, RecordMemfd(annotations, remote));
  v1::DataPlaneRequest request;
  request.mutable_open()->set_digest(digest.hex());
  request.mutable_open()->set_size(size);
  request.mutable_open()->set_encrypted(encrypted);
  request.mutable_open()->set_timeout_ms(TimeoutMs(deadline));
  request.mutable_open()->set_remote(remote);
  RETURN_IF_ERROR(supervisor_->Call(request, {blob.get(), record.get()}, deadline).status());
  return views_ / digest.hex();
}

absl::Status DataPlane::UseFetcher(const UniqueFd& socket, absl::Time deadline) {
  return supervisor_->UseFetcher(socket, deadline);
}

absl::Status DataPlane::UseFile(const oci::Digest& digest, const UniqueFd& blob,
                                absl::Time deadline) {
  v1::DataPlaneRequest request;
  request.mutable_use_file()->set_digest(digest.hex());
  return supervisor_->Call(request, {blob.get()}, deadline).status();
}

absl::Status DataPlane::UseLocal(const oci::Digest& digest, const UniqueFd& blob,
                                 absl::Time deadline) {
  v1::DataPlaneRequest request;
  request.mutable_use_local()->set_digest(digest.hex());
  return supervisor_->Call(request, {blob.get()}, deadline).status();
}

absl::Status DataPlane::Authorise(const oci::Digest& digest, const oci::Annotations& annotations,
                                  absl::Time deadline) {
  ASSIGN_OR_RETURN(const UniqueFd memfd, AnnotationsMemfd(annotations));
  v1::DataPlaneRequest request;
  request.mutable_authorise()->set_digest(digest.hex());
  request.mutable_authorise()->set_timeout_ms(TimeoutMs(deadline));
  return supervisor_->Call(request, {memfd.get()}, deadline).status();
}

absl::Status DataPlane::Close(const oci::Digest& digest, absl::Time deadline) {
  v1::DataPlaneRequest request;
  request.mutable_close()->set_digest(digest.hex());
  return supervisor_->Call(request, {}, deadline).status();
}

void DataPlane::Stop() { supervisor_->Stop(); }
void DataPlane::Leave() { supervisor_->Leave(); }
const std::optional<std::vector<std::string>>& DataPlane::adopted() const {
  return supervisor_->adopted();
}
absl::Status DataPlane::Upgrade() { return supervisor_->Upgrade(); }
DataPlaneStatus DataPlane::status() const { return supervisor_->status(); }
bool DataPlane::failover() const { return supervisor_->failover(); }
bool DataPlane::serving() const { return supervisor_->serving(); }
pid_t DataPlane::pid() const { return supervisor_->pid(); }

}  // namespace kapsule::snapshotter
