#include <cstdint>

#include "core/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const kapsule::MemoryReader reader(std::as_bytes(std::span(data, size)));
  (void)kapsule::model::ReadSafetensors(reader).ok();
  return 0;
}
