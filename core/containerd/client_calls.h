// What the parts of Client share. Included by them only.
#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>

#include "containerd/services/containers/v1/containers.grpc.pb.h"
#include "containerd/services/content/v1/content.grpc.pb.h"
#include "containerd/services/diff/v1/diff.grpc.pb.h"
#include "containerd/services/images/v1/images.grpc.pb.h"
#include "containerd/services/leases/v1/leases.grpc.pb.h"
#include "containerd/services/namespaces/v1/namespace.grpc.pb.h"
#include "containerd/services/snapshots/v1/snapshots.grpc.pb.h"
#include "core/containerd/client.h"

namespace kapsule::containerd {

namespace containers = ::containerd::services::containers::v1;
namespace content = ::containerd::services::content::v1;
namespace diff = ::containerd::services::diff::v1;
namespace images = ::containerd::services::images::v1;
namespace leases = ::containerd::services::leases::v1;
namespace namespaces = ::containerd::services::namespaces::v1;
namespace snapshots = ::containerd::services::snapshots::v1;

// The context of one call.
class Call {
 public:
  Call(const std::string& ns, absl::Time deadline) {
    if (!ns.empty()) context_.AddMetadata("containerd-namespace", ns);
    // gRPC takes a time before 1970 for no deadline at all.
    context_.set_deadline(absl::ToChronoTime(std::max(deadline, absl::UnixEpoch())));
  }
  grpc::ClientContext* get() { return &context_; }
  void SetLease(const std::string& lease) {
    if (!lease.empty()) context_.AddMetadata("containerd-lease", lease);
  }
  void Cancel() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
};

struct Client::Stubs {
  explicit Stubs(const std::shared_ptr<grpc::Channel>& channel)
      : containers(channel),
        content(channel),
        diff(channel),
        images(channel),
        leases(channel),
        namespaces(channel),
        snapshots(channel) {}
  containers::Containers::Stub containers;
  content::Content::Stub content;
  diff::Diff::Stub diff;
  images::Images::Stub images;
  leases::Leases::Stub leases;
  namespaces::Namespaces::Stub namespaces;
  snapshots::Snapshots::Stub snapshots;
};

}  // namespace kapsule::containerd
