// From a Modelfile to the list of everything that the image holds.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/model/documents.h"
#include "core/model/inputs.h"
#include "core/model/layout.h"

namespace kapsule::model {

// A small file of the image: its content under `path` and, as hard links,
// under `links`.
struct PlannedFile {
  std::string path;
  std::vector<std::string> links;
  std::string content;
};

// A layer with one weight file.
struct PlannedWeight {
  WeightFile file;
  std::string path;                // of the file itself: models/tiny/model.gguf
  std::vector<std::string> links;  // hard links known before the file is read
  bool ollama_blob = false;        // one more, named by the digest

  const char* kind() const { return RoleName(file.role); }
  // All hard links, once the file's SHA-256 is known; the names' lengths do not
  // depend on it.
  std::vector<std::string> Links(const oci::Digest& digest) const;
};

struct PlanOptions {
  oci::Reference reference;  // the image's name: gives every layout its names
};

// Layers bottom to top: 0 `directories` and `public_files`, always plain; one
// for each of `weights`; last the small files (kind "config"). Paths are
// checked, unique within the plan, and no layer's file is another's directory.
// Parent directories are not listed in layers 1 and up: ParentDirectories().
struct Plan {
  std::vector<std::string> directories;   // sorted, parents first
  std::vector<PlannedFile> public_files;  // kapsule/model.json
  std::vector<PlannedWeight> weights;     // at least one
  std::vector<std::string> environment;   // "OLLAMA_MODELS=/ollama/models", …
  std::vector<std::string> warnings;      // for the user
  ModelFacts facts;

  // The last layer, given the SHA-256 of each of `weights` in their order.
  // Count, path lengths and sizes do not depend on the digests, so a caller
  // that needs them beforehand passes zero digests.
  //   InvalidArgument  another number of digests than weights
  absl::StatusOr<std::vector<PlannedFile>> SmallFiles(
      const std::vector<oci::Digest>& weight_digests) const;

  // What SmallFiles() is made from.
  std::vector<PlannedFile> fixed_files;  // do not depend on the weights
  // Layers of Ollama's manifest after the weights; empty optional: no Ollama layout.
  struct Ollama {
    std::string manifest_path;
    std::vector<OllamaBlob> documents;
  };
  std::optional<Ollama> ollama;
};

// Reads the Modelfile (or, where `modelfile` is empty, Modelfile or ModelFile of
// `context`), checks all files that it names and plans the image. Weights are
// not read beyond their headers: the builder streams WeightFile::source and must
// refuse a file whose length is no longer WeightFile::size.
//   NotFound         "specified Modelfile wasn't found", files that are missing
//   InvalidArgument  bad Modelfile, weights, names or paths
//   Unimplemented    what is not supported yet
absl::StatusOr<Plan> MakePlan(const std::filesystem::path& modelfile,
                              const std::filesystem::path& context, const PlanOptions& options);

}  // namespace kapsule::model
