// Kubernetes' image service (CRI v1), passed on to containerd: kubelet pulls
// through here, so that we learn whom an image is pulled as.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>

#include <filesystem>
#include <optional>
#include <string>

#include "snapshotter/pull_memory.h"

namespace kapsule::snapshotter {

// Passes every call of runtime.v1.ImageService on as it came, byte by byte, and
// every answer and error back; other services that no one serves are UNIMPLEMENTED.
// Registered by ServerBuilder::RegisterCallbackGenericService(), beside other
// services. Outlives the server. Thread-safe.
class CriImages final : public grpc::CallbackGenericService {
 public:
  explicit CriImages(const std::filesystem::path& containerd_address);

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

  // Whom `image`, or another image of its repository, was last pulled as;
  // nullopt where that is not known, or nobody.
  std::optional<PullCredentials> Find(const std::string& image);

 private:
  grpc::GenericStub containerd_;
  PullMemory pulls_;
};

}  // namespace kapsule::snapshotter
