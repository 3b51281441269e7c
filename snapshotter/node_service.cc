#include "snapshotter/node_service.h"

#include <algorithm>

#include "core/base/printable.h"

namespace kapsule::snapshotter {
namespace {

constexpr size_t kMaxErrorText = 4096;

uint64_t Microseconds(absl::Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Microseconds(duration)));
}

// Nothing else turns it off (DataPlane).
std::string FailoverProblem(const DataPlaneStatus& status) {
  if (status.failover) return "";
  if (status.pid < 0) return "there is no kapsule-fuse";
  return "kapsule-holder has ended: when kapsule-fuse ends, reads fail until it is mounted anew;"
         " to have failover again, end kapsule-fuse while no model is read";
}

}  // namespace

grpc::Status NodeService::Status(grpc::ServerContext*, const v1::StatusRequest*,
                                 v1::StatusResponse* response) {
  const DataPlaneStatus status = status_();
  response->set_version(KAPSULE_VERSION);
  response->set_pid(std::max(status.pid, 0));
  response->set_serving(status.serving);
  response->set_failover(status.failover);
  response->set_failover_problem(FailoverProblem(status));
  response->set_views(status.views);
  response->set_takeovers(status.takeovers);
  response->set_last_stall_us(Microseconds(status.last_stall));
  response->set_view_mount(status.view_mount);
  return grpc::Status::OK;
}

grpc::Status NodeService::Upgrade(grpc::ServerContext*, const v1::UpgradeRequest*,
                                  v1::UpgradeResponse* response) {
  const DataPlaneStatus before = status_();
  const absl::Status upgraded = upgrade_();
  const DataPlaneStatus after = status_();
  if (upgraded.ok()) {
    response->set_old_pid(std::max(before.pid, 0));
    response->set_new_pid(std::max(after.pid, 0));
    response->set_stall_us(Microseconds(after.last_stall));
    return grpc::Status::OK;
  }
  const std::string now = after.serving ? fmt::format("kapsule-fuse {} serves on", after.pid)
                                        : "no kapsule-fuse serves; a new one is being started";
  // The codes of absl and gRPC have the same numbers.
  return {static_cast<grpc::StatusCode>(upgraded.code()),
          PrintableAscii(fmt::format("{} ({})", Message(upgraded), now), kMaxErrorText)};
}

}  // namespace kapsule::snapshotter
