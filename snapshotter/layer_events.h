// What happens to the Kapsule layers of a node, for those who count it.
#pragma once

#include <functional>

#include <absl/status/status.h>
#include <absl/time/time.h>

namespace kapsule::snapshotter {

// Called by several threads at once; must not wait. Null: nobody wants to know.
struct LayerEvents {
  // A layer has been opened and mounted, or that failed, after so long.
  std::function<void(const absl::Status&, absl::Duration)> opened = {};
  // An image may not use the layers of a container.
  std::function<void(const absl::Status&)> refused = {};
};

}  // namespace kapsule::snapshotter
