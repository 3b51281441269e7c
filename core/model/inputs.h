// The files that FROM and ADAPTER name.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/model/gguf.h"
#include "core/model/modelfile.h"
#include "core/model/safetensors.h"

namespace kapsule::model {

enum class Role { kModel, kProjector, kAdapter };
// "model", "adapter", "projector": the last word of the layer's media type.
const char* RoleName(Role role);

struct WeightFile {
  std::filesystem::path source;  // absolute, without symbolic links; a regular file
  std::string name;              // file name, or path below the directory that FROM names
  uint64_t size = 0;             // bytes when it was read
  Role role = Role::kModel;
  std::optional<GgufInfo> gguf;  // exactly one of the two: the format
  std::optional<SafetensorsInfo> safetensors;
};

// A tokenizer, config.json, … that stands beside the weights.
struct SmallInput {
  std::string name;  // path below the directory that FROM or ADAPTER names
  Role role = Role::kModel;
  std::string content;
};

inline constexpr uint64_t kMaxSmallFileBytes = 128 << 20;
inline constexpr uint64_t kMaxSmallFilesBytes = 256 << 20;  // together
inline constexpr size_t kMaxInputFiles = 1000;              // a manifest has at most 1,024 layers

struct Inputs {
  std::vector<WeightFile> weights;    // models (split sets in order), then projectors, adapters
  std::vector<SmallInput> small;      // sorted by role and name
  std::vector<std::string> warnings;  // for the user: files of a directory that are left out
};

// Finds and checks the files. Relative paths start at `modelfile_folder`, where
// there is no such file at `context` (unless that is empty); "~" is $HOME.
// A directory gives, in Ollama's order, its safetensors weights with *.json and
// tokenizer files, or its *.gguf.
//   NotFound         an ADAPTER that does not exist, a directory without weights
//   InvalidArgument  damaged weights; an incomplete split set; "insecure path: …" for a
//                    symbolic link that leaves the directory
//   Unimplemented    FROM names a model of a registry; pickle weights
absl::StatusOr<Inputs> ResolveInputs(const Modelfile& modelfile,
                                     const std::filesystem::path& modelfile_folder,
                                     const std::filesystem::path& context);

}  // namespace kapsule::model
