#include "core/model/plan.h"

#include <algorithm>
#include <set>

#include "core/model/planner.h"

namespace kapsule::model {
namespace {
namespace fs = std::filesystem;

// The Modelfile's path: `modelfile`, or the first default name in `context`.
absl::StatusOr<fs::path> FindModelfile(const fs::path& modelfile, const fs::path& context) {
  std::error_code error;
  if (!modelfile.empty()) {
    if (fs::exists(modelfile, error)) return modelfile;
    return NotFound("specified Modelfile wasn't found: {}", modelfile.string());
  }
  for (const char* name : {"Modelfile", "ModelFile"})
    if (fs::exists(context / name, error)) return context / name;
  return NotFound("specified Modelfile wasn't found: {}", (context / "Modelfile").string());
}

std::vector<std::string> AllFiles(const Plan& plan) {
  std::vector<std::string> paths;
  const auto add = [&paths](const std::string& path, const std::vector<std::string>& links) {
    paths.push_back(path);
    paths.insert(paths.end(), links.begin(), links.end());
  };
  for (const PlannedFile& file : plan.public_files) add(file.path, file.links);
  for (const PlannedFile& file : plan.fixed_files) add(file.path, file.links);
  for (const PlannedWeight& weight : plan.weights) add(weight.path, weight.links);
  if (plan.ollama.has_value()) paths.push_back(plan.ollama->manifest_path);
  return paths;
}

absl::Status CheckPaths(const Plan& plan) {
  const std::vector<std::string> paths = AllFiles(plan);
  std::set<std::string> files;
  for (const std::string& path : paths) {
    RETURN_IF_ERROR(CheckPath(path));
    if (!files.insert(path).second)
      return InvalidArgument("two files would stand at {}: rename one", path);
  }
  for (const std::string& directory : ParentDirectories(paths))
    if (files.contains(directory))
      return InvalidArgument("{} would be a file and a directory: rename one", directory);
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> PlannedWeight::Links(const oci::Digest& digest) const {
  std::vector<std::string> all = links;
  if (ollama_blob) all.push_back(Layout::OllamaBlobPath(digest));
  return all;
}

absl::StatusOr<std::vector<PlannedFile>> Plan::SmallFiles(
    const std::vector<oci::Digest>& weight_digests) const {
  if (weight_digests.size() != weights.size())
    return InvalidArgument("{} digests for {} weight files", weight_digests.size(), weights.size());
  std::vector<PlannedFile> files = fixed_files;
  if (!ollama.has_value()) return files;
  std::vector<WeightFile> weight_files;
  std::vector<OllamaBlob> layers;
  for (size_t i = 0; i < weights.size(); ++i) {
    weight_files.push_back(weights[i].file);
    layers.push_back({std::string(kOllamaTypePrefix) + weights[i].kind(), weight_digests[i],
                      weights[i].file.size});
  }
  layers.insert(layers.end(), ollama->documents.begin(), ollama->documents.end());
  const std::string config = OllamaConfigJson(weight_files, layers);
  const OllamaBlob config_blob = {kOllamaConfigType, oci::Digest::Of(AsBytes(config)),
                                  config.size()};
  files.push_back({Layout::OllamaBlobPath(config_blob.digest), {}, config});
  files.push_back({ollama->manifest_path, {}, OllamaManifestJson(config_blob, layers)});
  return files;
}

absl::StatusOr<Plan> MakePlan(const fs::path& modelfile, const fs::path& context,
                              const PlanOptions& options) {
  ASSIGN_OR_RETURN(const fs::path path, FindModelfile(modelfile, context));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxModelfileBytes));
  const auto annotate = [&path](const absl::Status& status) {
    return Annotate(status, path.string());
  };
  absl::StatusOr<Modelfile> parsed = ParseModelfile(text);
  if (!parsed.ok()) return annotate(parsed.status());
  absl::StatusOr<Inputs> inputs = ResolveInputs(*parsed, path.parent_path(), context);
  if (!inputs.ok()) return annotate(inputs.status());
  ASSIGN_OR_RETURN(const Layout layout, Layout::Make(options.reference));
  Plan plan = Planner(options.reference, layout, *parsed, *std::move(inputs)).Make();
  RETURN_IF_ERROR(CheckPaths(plan));
  return plan;
}

}  // namespace kapsule::model
