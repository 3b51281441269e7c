// What a build tells while it runs.
#pragma once

#include <cstdint>
#include <string>

namespace kapsule::image {

// Called by the thread that builds, in the order of the layers.
class Progress {
 public:
  virtual ~Progress() = default;
  // Layer `number` of `count`, from 1 on; `size` bytes will be written.
  virtual void StartLayer(size_t number, size_t count, const std::string& title, uint64_t size) = 0;
  // `bytes` more of the current layer are written.
  virtual void Advance(uint64_t bytes) = 0;
  virtual void FinishLayer() = 0;
};

}  // namespace kapsule::image
