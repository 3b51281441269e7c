// Finding files on disk: what FROM's value names, and which files of a
// directory belong to a model.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/model/inputs.h"

namespace kapsule::model {

struct FoundFile {
  std::filesystem::path source;  // absolute, without symbolic links; a regular file
  std::string name;              // safe components, '/'-separated
};

// What the value of a FROM or ADAPTER names on this machine, existing or not:
// "" is `modelfile_folder`; "~" and "~user" are home directories; a relative
// path starts at `modelfile_folder` or, where that has no such file, `context`.
absl::StatusOr<std::filesystem::path> ExpandPath(const std::string& value,
                                                 const std::filesystem::path& modelfile_folder,
                                                 const std::filesystem::path& context);

// A file that the user named; of a split set (…-00001-of-00003.gguf) all parts.
//   NotFound         it, or a part, is missing
//   InvalidArgument  not a regular file, or a name that cannot be kept
absl::StatusOr<std::vector<FoundFile>> FindFile(const std::filesystem::path& path);

struct FoundModel {
  std::vector<FoundFile> weights, small;  // sorted by name
  std::vector<std::string> left_out;      // other files of the directory itself
};
// The files of a model or adapter in a directory, in Ollama's order of choice.
absl::StatusOr<FoundModel> FindModel(const std::filesystem::path& directory, Role role);

// Unimplemented, for weights that are pickled Python objects.
absl::Status PickleError(const std::string& name);

}  // namespace kapsule::model
