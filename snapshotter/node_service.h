// kapsule.v1.Node: what an operator asks (kapsule-ctl status, upgrade).
#pragma once

#include <functional>

#include "core/base/status.h"
#include "kapsule/v1/node.grpc.pb.h"
#include "snapshotter/data_plane_status.h"

namespace kapsule::snapshotter {

// Called by gRPC's threads, several at once, so the functions are thread-safe.
class NodeService final : public v1::Node::Service {
 public:
  // As ModelLayers::status() and Upgrade().
  NodeService(std::function<DataPlaneStatus()> status, std::function<absl::Status()> upgrade)
      : status_(std::move(status)), upgrade_(std::move(upgrade)) {}

  grpc::Status Status(grpc::ServerContext* context, const v1::StatusRequest* request,
                      v1::StatusResponse* response) override;
  grpc::Status Upgrade(grpc::ServerContext* context, const v1::UpgradeRequest* request,
                       v1::UpgradeResponse* response) override;

 private:
  const std::function<DataPlaneStatus()> status_;
  const std::function<absl::Status()> upgrade_;
};

}  // namespace kapsule::snapshotter
