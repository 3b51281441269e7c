// What the snapshotter asks of Kapsule layers (model_layers.h), so that
// ordinary snapshots work, and are tested, without kapsule-fuse.
#pragma once

#include <string>
#include <vector>

#include <absl/time/time.h>

#include "core/base/status.h"
#include "snapshotter/model_layers.h"

namespace kapsule::snapshotter {

// Each method as in ModelLayers. Thread-safe.
class LayerBackend {
 public:
  virtual ~LayerBackend() = default;
  virtual absl::Status PreRegister(const std::string& ns, const oci::Digest& chain_id) = 0;
  virtual void Add(const ModelLayer& layer) = 0;
  virtual absl::Status Await(const SnapshotKey& key, const std::vector<ModelLayer>& chain,
                             absl::Time deadline) = 0;
  virtual void Remove(const ModelLayer& layer) = 0;
};

}  // namespace kapsule::snapshotter
