#include "snapshotter/snapshots_service.h"

namespace kapsule::snapshotter {
namespace {

namespace api = containerd::services::snapshots::v1;

constexpr int kInfosPerMessage = 100;
constexpr int64_t kNanos = 1'000'000'000;

// absl and gRPC number their codes alike.
grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), Message(status)};
}

Labels LabelsFromProto(const google::protobuf::Map<std::string, std::string>& labels) {
  return {labels.begin(), labels.end()};
}

template <typename Response>
grpc::Status AnswerMounts(const absl::StatusOr<std::vector<Mount>>& mounts, Response* response) {
  if (!mounts.ok()) return ToGrpc(mounts.status());
  for (const Mount& mount : *mounts) {
    containerd::types::Mount& proto = *response->add_mounts();
    proto.set_type(mount.type);
    proto.set_source(mount.source);
    for (const std::string& option : mount.options) proto.add_options(option);
  }
  return grpc::Status::OK;
}

void TimeToProto(int64_t ns, google::protobuf::Timestamp& proto) {
  proto.set_seconds(ns / kNanos);
  proto.set_nanos(static_cast<int32_t>(ns % kNanos));
}

void InfoToProto(const Info& info, api::Info& proto) {
  proto.set_name(info.name);
  proto.set_parent(info.parent);
  proto.set_kind(static_cast<api::Kind>(info.kind));
  TimeToProto(info.created_ns, *proto.mutable_created_at());
  TimeToProto(info.updated_ns, *proto.mutable_updated_at());
  for (const auto& [name, value] : info.labels) (*proto.mutable_labels())[name] = value;
}

static_assert(static_cast<int>(Kind::kView) == api::VIEW);
static_assert(static_cast<int>(Kind::kActive) == api::ACTIVE);
static_assert(static_cast<int>(Kind::kCommitted) == api::COMMITTED);

}  // namespace

grpc::Status SnapshotsService::Prepare(grpc::ServerContext*,
                                       const api::PrepareSnapshotRequest* request,
                                       api::PrepareSnapshotResponse* response) {
  return AnswerMounts(
      snapshotter_.Prepare(request->key(), request->parent(), LabelsFromProto(request->labels())),
      response);
}

grpc::Status SnapshotsService::View(grpc::ServerContext*, const api::ViewSnapshotRequest* request,
                                    api::ViewSnapshotResponse* response) {
  return AnswerMounts(
      snapshotter_.View(request->key(), request->parent(), LabelsFromProto(request->labels())),
      response);
}

grpc::Status SnapshotsService::Mounts(grpc::ServerContext*, const api::MountsRequest* request,
                                      api::MountsResponse* response) {
  return AnswerMounts(snapshotter_.Mounts(request->key()), response);
}

grpc::Status SnapshotsService::Commit(grpc::ServerContext*,
                                      const api::CommitSnapshotRequest* request,
                                      google::protobuf::Empty*) {
  return ToGrpc(
      snapshotter_.Commit(request->name(), request->key(), LabelsFromProto(request->labels())));
}

grpc::Status SnapshotsService::Remove(grpc::ServerContext*,
                                      const api::RemoveSnapshotRequest* request,
                                      google::protobuf::Empty*) {
  return ToGrpc(snapshotter_.Remove(request->key()));
}

grpc::Status SnapshotsService::Stat(grpc::ServerContext*, const api::StatSnapshotRequest* request,
                                    api::StatSnapshotResponse* response) {
  const absl::StatusOr<Info> info = snapshotter_.Stat(request->key());
  if (!info.ok()) return ToGrpc(info.status());
  InfoToProto(*info, *response->mutable_info());
  return grpc::Status::OK;
}

grpc::Status SnapshotsService::Update(grpc::ServerContext*,
                                      const api::UpdateSnapshotRequest* request,
                                      api::UpdateSnapshotResponse* response) {
  Info wanted;
  wanted.name = request->info().name();
  wanted.labels = LabelsFromProto(request->info().labels());
  const auto& paths = request->update_mask().paths();
  const absl::StatusOr<Info> info = snapshotter_.Update(wanted, {paths.begin(), paths.end()});
  if (!info.ok()) return ToGrpc(info.status());
  InfoToProto(*info, *response->mutable_info());
  return grpc::Status::OK;
}

grpc::Status SnapshotsService::List(grpc::ServerContext*, const api::ListSnapshotsRequest* request,
                                    grpc::ServerWriter<api::ListSnapshotsResponse>* writer) {
  const absl::StatusOr<std::vector<Info>> all =
      snapshotter_.List({request->filters().begin(), request->filters().end()});
  if (!all.ok()) return ToGrpc(all.status());
  api::ListSnapshotsResponse batch;
  for (const Info& info : *all) {
    InfoToProto(info, *batch.add_info());
    if (batch.info_size() < kInfosPerMessage && &info != &all->back()) continue;
    if (!writer->Write(batch)) return {grpc::StatusCode::CANCELLED, "the client went away"};
    batch.Clear();
  }
  return grpc::Status::OK;
}

grpc::Status SnapshotsService::Usage(grpc::ServerContext*, const api::UsageRequest* request,
                                     api::UsageResponse* response) {
  const auto usage = snapshotter_.GetUsage(request->key());
  if (!usage.ok()) return ToGrpc(usage.status());
  response->set_size(static_cast<int64_t>(usage->size));
  response->set_inodes(static_cast<int64_t>(usage->inodes));
  return grpc::Status::OK;
}

grpc::Status SnapshotsService::Cleanup(grpc::ServerContext*, const api::CleanupRequest*,
                                       google::protobuf::Empty*) {
  snapshotter_.Cleanup();
  return grpc::Status::OK;
}

}  // namespace kapsule::snapshotter
