// containerd's diff service for Kapsule layers (a proxy differ, from containerd
// 1.7.4 on): they are not unpacked, but served as they are.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "containerd/services/diff/v1/diff.grpc.pb.h"
#include "core/oci/annotations.h"

namespace kapsule::differ {

// What the service asks of the snapshotter, as in Snapshotter. Thread-safe.
struct SnapshotCalls {
  std::function<absl::Status(const std::string& directory, const oci::LayerLabel&)> claim;
  std::function<absl::StatusOr<bool>(const std::vector<std::string>& directories)> any_encrypted;
};

// Answers UNIMPLEMENTED to what is not its own, for which containerd asks the next
// differ: it is asked about the layers of every snapshotter. Thread-safe.
class DiffService final : public containerd::services::diff::v1::Diff::Service {
 public:
  explicit DiffService(SnapshotCalls snapshots) : snapshots_(std::move(snapshots)) {}

  // Claims a Kapsule layer that is being unpacked into a snapshot of ours: answers
  // with the tar that its diff_id names, and writes nothing. containerd compares
  // the diff_id with the image's config.
  grpc::Status Apply(grpc::ServerContext* context,
                     const containerd::services::diff::v1::ApplyRequest* request,
                     containerd::services::diff::v1::ApplyResponse* response) override;

  // FAILED_PRECONDITION above an encrypted layer of ours, whose files the next
  // differ could store as plaintext.
  grpc::Status Diff(grpc::ServerContext* context,
                    const containerd::services::diff::v1::DiffRequest* request,
                    containerd::services::diff::v1::DiffResponse* response) override;

 private:
  const SnapshotCalls snapshots_;
};

}  // namespace kapsule::differ
