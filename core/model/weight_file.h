// Reading the header of one weight file.
#pragma once

#include "core/model/input_files.h"

namespace kapsule::model {

// Reads and checks `file`. Its role is kAdapter where `wanted` says so, else
// what the file itself says.
//   InvalidArgument  neither GGUF nor safetensors, damaged, or not an adapter
//   Unimplemented    pickle weights
absl::StatusOr<WeightFile> ReadWeightFile(const FoundFile& file, Role wanted);

// Split sets are complete and their names agree with what the files say;
// models are all of one format; there is a model, and one adapter at most.
absl::Status CheckWeights(const std::vector<WeightFile>& weights);

}  // namespace kapsule::model
