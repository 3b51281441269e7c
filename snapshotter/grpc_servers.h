// The sockets on which kapsule-snapshotter serves containerd, kapsule-ctl and the kubelet:
// root's alone.
#pragma once

#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <memory>

#include "core/base/status.h"
#include "snapshotter/cri_images.h"
#include "snapshotter/rpc_timer.h"

namespace kapsule::snapshotter {

// What is served outlives the server.
//   AlreadyExists  another process listens there
absl::StatusOr<std::unique_ptr<grpc::Server>> Serve(const std::filesystem::path& address,
                                                    grpc::Service& snapshots, grpc::Service& differ,
                                                    grpc::Service& node, RpcEnded rpc_ended);

// Null for an empty address. Errors as above.
absl::StatusOr<std::unique_ptr<grpc::Server>> ServeCri(const std::filesystem::path& address,
                                                       CriImages& images);

}  // namespace kapsule::snapshotter
