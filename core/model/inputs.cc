#include "core/model/inputs.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "core/base/json.h"
#include "core/base/printable.h"
#include "core/model/input_files.h"
#include "core/model/weight_file.h"

namespace kapsule::model {
namespace {
namespace fs = std::filesystem;

constexpr size_t kMaxIndexBytes = 64 << 20;

// What a value that names nothing on disk was meant to be.
absl::Status Missing(const Location& location, const char* instruction) {
  const std::string& value = location.value;
  bool path = std::string_view(instruction) == "ADAPTER" || value.starts_with('/') ||
              value.starts_with('.') || value.starts_with('~');
  for (const std::string_view suffix : {".gguf", ".safetensors", ".bin"})
    path |= value.ends_with(suffix);
  if (path)
    return NotFound("(line {}): {} {}: no such file or directory", location.line, instruction,
                    Printable(value));
  return Unimplemented("(line {}): FROM {} names a model of a registry; give a file or directory",
                       location.line, Printable(value));
}

std::string LeftOut(const std::string& directory, const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string list;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    list += (i == 0 ? "" : ", ") + names[i];
  return fmt::format("{}: {} files are left out: {}{}", directory, names.size(), list,
                     names.size() > kShown ? ", …" : "");
}

class Resolver {
 public:
  Resolver(fs::path folder, fs::path context)
      : folder_(std::move(folder)), context_(std::move(context)) {}

  absl::Status Add(const Location& location, Role role, const char* instruction) {
    const absl::Status status = Find(location, role, instruction);
    if (status.ok() || Message(status).starts_with("(line ")) return status;
    return Annotate(status, fmt::format("(line {}): {}", location.line, instruction));
  }

  // An ADAPTER that a later one replaces must exist all the same.
  absl::Status AddReplaced(const Location& location) {
    ASSIGN_OR_RETURN(const fs::path path, ExpandPath(location.value, folder_, context_));
    std::error_code error;
    if (!fs::exists(path, error)) return Missing(location, "ADAPTER");
    inputs_.warnings.push_back(
        fmt::format("(line {}): ADAPTER is replaced by a later one", location.line));
    return absl::OkStatus();
  }

  absl::StatusOr<Inputs> Finish() {
    std::stable_sort(inputs_.weights.begin(), inputs_.weights.end(),
                     [](const auto& a, const auto& b) { return a.role < b.role; });
    std::stable_sort(inputs_.small.begin(), inputs_.small.end(), [](const auto& a, const auto& b) {
      return std::tie(a.role, a.name) < std::tie(b.role, b.name);
    });
    RETURN_IF_ERROR(CheckWeights(inputs_.weights));
    for (const SmallInput& small : inputs_.small) RETURN_IF_ERROR(CheckIndex(small));
    return std::move(inputs_);
  }

 private:
  absl::Status Find(const Location& location, Role role, const char* instruction) {
    ASSIGN_OR_RETURN(const fs::path path, ExpandPath(location.value, folder_, context_));
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (status.type() == fs::file_type::not_found) return Missing(location, instruction);
    if (error) return ErrnoStatus(error.value(), path.string());
    if (status.type() != fs::file_type::directory) {
      ASSIGN_OR_RETURN(const std::vector<FoundFile> files, FindFile(path));
      return AddWeights(files, role);
    }
    ASSIGN_OR_RETURN(const FoundModel found, FindModel(path, role));
    RETURN_IF_ERROR(AddWeights(found.weights, role));
    if (!found.left_out.empty()) inputs_.warnings.push_back(LeftOut(path.string(), found.left_out));
    return AddSmall(found.small, role);
  }

  absl::Status AddWeights(const std::vector<FoundFile>& files, Role role) {
    for (const FoundFile& file : files) {
      if (!seen_.insert({file.source, file.name}).second) continue;
      if (inputs_.weights.size() == kMaxInputFiles)
        return InvalidArgument("more than {} weight files", kMaxInputFiles);
      ASSIGN_OR_RETURN(WeightFile weight, ReadWeightFile(file, role));
      inputs_.weights.push_back(std::move(weight));
    }
    return absl::OkStatus();
  }

  absl::Status AddSmall(const std::vector<FoundFile>& files, Role role) {
    for (const FoundFile& file : files) {
      if (!seen_.insert({file.source, file.name}).second) continue;
      ASSIGN_OR_RETURN(std::string content, ReadFile(file.source, kMaxSmallFileBytes));
      small_bytes_ += content.size();
      if (small_bytes_ > kMaxSmallFilesBytes)
        return InvalidArgument("{}: the small files have more than {} bytes together", file.name,
                               kMaxSmallFilesBytes);
      inputs_.small.push_back({file.name, role, std::move(content)});
    }
    return absl::OkStatus();
  }

  // All shards that model.safetensors.index.json names are there.
  absl::Status CheckIndex(const SmallInput& small) const {
    if (!small.name.ends_with(".safetensors.index.json") || small.name.find('/') != small.name.npos)
      return absl::OkStatus();
    absl::StatusOr<Json> index = ParseJson(small.content, kMaxIndexBytes);
    if (!index.ok()) return Annotate(index.status(), small.name);
    const Json* map = FindMember(*index, "weight_map");
    if (map == nullptr || !map->is_object())
      return InvalidArgument("{}: \"weight_map\" is missing or not an object", small.name);
    std::set<std::string> names;
    for (const WeightFile& weight : inputs_.weights) names.insert(weight.name);
    for (const Json& file : *map)
      if (!file.is_string() || !names.contains(file.get<std::string>()))
        return InvalidArgument("{}: names {}, which is missing", small.name,
                               Printable(DumpJson(file)));
    return absl::OkStatus();
  }

  const fs::path folder_, context_;
  Inputs inputs_;
  std::set<std::pair<fs::path, std::string>> seen_;  // what several FROM name is taken once
  uint64_t small_bytes_ = 0;
};

}  // namespace

const char* RoleName(Role role) {
  switch (role) {
    case Role::kModel:
      return "model";
    case Role::kProjector:
      return "projector";
    case Role::kAdapter:
      return "adapter";
  }
  return "";
}

absl::StatusOr<Inputs> ResolveInputs(const Modelfile& modelfile, const fs::path& modelfile_folder,
                                     const fs::path& context) {
  Resolver resolver(modelfile_folder, context);
  for (const Location& from : modelfile.from)
    RETURN_IF_ERROR(resolver.Add(from, Role::kModel, "FROM"));
  for (const Location& adapter : modelfile.adapters) {
    const bool last = &adapter == &modelfile.adapters.back();
    RETURN_IF_ERROR(last ? resolver.Add(adapter, Role::kAdapter, "ADAPTER")
                         : resolver.AddReplaced(adapter));
  }
  return resolver.Finish();
}

}  // namespace kapsule::model
