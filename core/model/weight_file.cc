#include "core/model/weight_file.h"

#include <algorithm>
#include <array>
#include <map>

#include "core/base/printable.h"
#include "core/model/split_name.h"

namespace kapsule::model {
namespace {

bool HasPickleName(const std::string& name) {
  for (const std::string_view suffix : {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
    if (name.ends_with(suffix)) return true;
  return false;
}

enum class Content { kGguf, kSafetensors, kPickle, kLfsPointer, kOther };

absl::StatusOr<Content> Sniff(const ReaderAt& file, const std::string& name) {
  std::string head(std::min<uint64_t>(file.size(), 24), '\0');
  RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(head))));
  if (head.starts_with("GGUF")) return Content::kGguf;
  if (head.starts_with("version https://git-lfs.")) return Content::kLfsPointer;
  if (name.ends_with(".safetensors")) return Content::kSafetensors;
  // torch.save writes a zip, and wrote a bare pickle before.
  if (head.starts_with("PK\3\4") || head.starts_with('\x80') || HasPickleName(name))
    return Content::kPickle;
  return Content::kOther;
}

// As Ollama decides (server/create.go).
Role RoleOf(const GgufInfo& gguf) {
  if (gguf.type == "adapter") return Role::kAdapter;
  const bool image_encoder = gguf.block_count == 0 && gguf.vision_block_count > 0;
  if (gguf.type == "projector" || gguf.type == "mmproj" || gguf.architecture == "clip" ||
      image_encoder)
    return Role::kProjector;
  return Role::kModel;
}

absl::Status ReadGgufInto(const ReaderAt& file, Role wanted, WeightFile& weight) {
  ASSIGN_OR_RETURN(weight.gguf, ReadGguf(file));
  weight.role = RoleOf(*weight.gguf);
  if (wanted != Role::kAdapter || weight.role == Role::kAdapter) return absl::OkStatus();
  if (!weight.gguf->type.empty())
    return InvalidArgument("ADAPTER names a {}, not an adapter", Printable(weight.gguf->type));
  weight.role = Role::kAdapter;  // made before general.type was there
  return absl::OkStatus();
}

absl::Status ReadInto(const ReaderAt& file, Role wanted, WeightFile& weight) {
  ASSIGN_OR_RETURN(const Content content, Sniff(file, weight.name));
  switch (content) {
    case Content::kGguf:
      return ReadGgufInto(file, wanted, weight);
    case Content::kSafetensors: {
      ASSIGN_OR_RETURN(weight.safetensors, ReadSafetensors(file));
      weight.role = wanted;
      return absl::OkStatus();
    }
    case Content::kPickle:
      return PickleError(weight.name);
    case Content::kLfsPointer:
      return InvalidArgument("a Git LFS pointer, not the file: fetch it with git lfs pull");
    case Content::kOther:
      break;
  }
  return InvalidArgument("neither GGUF nor safetensors");
}

absl::Status CheckSplitName(const WeightFile& weight) {
  const std::optional<SplitName> name = ParseSplitName(weight.name);
  const uint64_t named = name.has_value() ? name->count : 1;
  const std::optional<GgufInfo::Split>& split = weight.gguf->split;
  const uint64_t count = split.has_value() ? split->count : 1;
  if (named != count || (split.has_value() && name->number != split->number + 1))
    return InvalidArgument("{}: its name is not that of part {} of {}", weight.name,
                           split.has_value() ? split->number + 1 : 1, count);
  return absl::OkStatus();
}

absl::Status CheckSplits(const std::vector<WeightFile>& weights) {
  std::map<std::pair<std::string, uint64_t>, uint64_t> parts;  // by prefix and count
  for (const WeightFile& weight : weights) {
    if (!weight.gguf.has_value()) continue;
    RETURN_IF_ERROR(CheckSplitName(weight));
    if (weight.gguf->split.has_value())
      ++parts[{ParseSplitName(weight.name)->prefix, weight.gguf->split->count}];
  }
  for (const auto& [set, found] : parts)
    if (found != set.second)
      return InvalidArgument("{}: {} of {} parts", set.first, found, set.second);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightFile> ReadWeightFile(const FoundFile& file, Role wanted) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileReader> reader, FileReader::Open(file.source));
  WeightFile weight;
  weight.source = file.source;
  weight.name = file.name;
  weight.size = reader->size();
  const absl::Status status = ReadInto(*reader, wanted, weight);
  if (!status.ok()) return Annotate(status, file.name);
  return weight;
}

absl::Status CheckWeights(const std::vector<WeightFile>& weights) {
  RETURN_IF_ERROR(CheckSplits(weights));
  size_t gguf = 0, safetensors = 0, adapters = 0;
  for (const WeightFile& weight : weights) {
    adapters += weight.role == Role::kAdapter;
    if (weight.role != Role::kModel) continue;
    gguf += weight.gguf.has_value();
    safetensors += weight.safetensors.has_value();
  }
  if (gguf + safetensors == 0)
    return InvalidArgument("FROM names no model, only adapters or projectors");
  if (gguf > 0 && safetensors > 0)
    return InvalidArgument("mixed model file types: found both gguf and safetensors inputs");
  if (adapters > 1) return InvalidArgument("only one adapter is currently supported");
  return absl::OkStatus();
}

}  // namespace kapsule::model
