#include "snapshotter/test_proxy.h"

#include <grpcpp/grpcpp.h>

#include "snapshotter/snapshots_service.h"

namespace kapsule::snapshotter {
namespace {

class Proxy final : public TestProxy {
 public:
  explicit Proxy(std::unique_ptr<Snapshotter> snapshotter)
      : snapshotter_(std::move(snapshotter)), service_(*snapshotter_) {}
  ~Proxy() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }
  absl::Status Serve(const std::filesystem::path& socket) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket.string(), grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    return server_ != nullptr ? absl::OkStatus() : Internal("cannot serve {}", socket.string());
  }

 private:
  const std::unique_ptr<Snapshotter> snapshotter_;
  SnapshotsService service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TestProxy>> TestProxy::Start(const std::filesystem::path& root,
                                                            const std::filesystem::path& socket,
                                                            LayerBackend& backend,
                                                            absl::Duration open_timeout) {
  ASSIGN_OR_RETURN(std::unique_ptr<MetadataStore> store, MetadataStore::Open(root / "metadata.db"));
  ASSIGN_OR_RETURN(std::unique_ptr<Snapshotter> snapshotter,
                   Snapshotter::Open(root, std::move(store), backend, open_timeout));
  auto proxy = std::make_unique<Proxy>(std::move(snapshotter));
  RETURN_IF_ERROR(proxy->Serve(socket));
  return proxy;
}

}  // namespace kapsule::snapshotter
