// Counts and times the calls that a gRPC server answers.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <functional>
#include <memory>
#include <string>

#include <absl/time/time.h>

namespace kapsule::snapshotter {

// Called when the answer of a call goes out, by several threads at once. `method` is
// like "Snapshots/Prepare": one that the server has, or "unknown".
using RpcEnded =
    std::function<void(const std::string& method, grpc::StatusCode code, absl::Duration)>;

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> TimeRpcs(RpcEnded ended);

}  // namespace kapsule::snapshotter
