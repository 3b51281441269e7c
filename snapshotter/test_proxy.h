// For tests: the snapshots service on a unix socket, as containerd's proxy
// snapshotter calls it.
#pragma once

#include <filesystem>
#include <memory>

#include "snapshotter/layer_backend.h"

namespace kapsule::snapshotter {

class TestProxy {
 public:
  // Keeps its snapshots below `root`; `backend` outlives it.
  static absl::StatusOr<std::unique_ptr<TestProxy>> Start(const std::filesystem::path& root,
                                                          const std::filesystem::path& socket,
                                                          LayerBackend& backend,
                                                          absl::Duration open_timeout);
  virtual ~TestProxy() = default;
};

}  // namespace kapsule::snapshotter
