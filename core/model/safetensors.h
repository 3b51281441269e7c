// The header of a safetensors file (huggingface/safetensors README.md). Stricter
// than the reference reader in one point: a tensor named twice is refused.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/file.h"

namespace kapsule::model {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr uint64_t kMaxSafetensorsTensors = 262'144;

struct SafetensorsInfo {
  uint64_t tensors = 0;
  uint64_t parameters = 0;  // elements of all tensors
  std::string dtype;        // of most elements: "BF16"; empty without tensors
};

// Reads and checks the header: types, shapes, and that the tensors cover the
// data without hole, overlap or rest.
//   InvalidArgument  damaged, truncated or beyond a limit; says what
absl::StatusOr<SafetensorsInfo> ReadSafetensors(const ReaderAt& file);

}  // namespace kapsule::model
