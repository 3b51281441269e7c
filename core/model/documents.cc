#include "core/model/documents.h"

#include <algorithm>
#include <cmath>

#include "core/model/go_json.h"

namespace kapsule::model {
namespace {

constexpr size_t kMaxConfigBytes = 16 << 20;

// The members of a Hugging Face config.json that are facts.
void AddConfigFacts(const Json& config, ModelFacts& facts) {
  if (const Json* type = FindMember(config, "model_type"); type != nullptr && type->is_string())
    facts.architecture = type->get<std::string>();
  if (const Json* quantization = FindMember(config, "quantization_config"))
    if (const Json* method = FindMember(*quantization, "quant_method");
        method != nullptr && method->is_string())
      facts.quantization = method->get<std::string>();
  for (const char* name : {"max_position_embeddings", "n_ctx", "n_positions", "max_length",
                           "max_sequence_length", "model_max_length"}) {
    const Json* length = FindMember(config, name);
    if (length == nullptr || !length->is_number_unsigned()) continue;
    facts.context_length = length->get<uint64_t>();
    return;
  }
}

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <typename... F>
Overloaded(F...) -> Overloaded<F...>;

std::string GoValue(const ParameterValue& value) {
  return std::visit(Overloaded{
                        [](int64_t number) { return std::to_string(number); },
                        [](float number) { return GoFloat(number); },
                        [](bool truth) { return std::string(truth ? "true" : "false"); },
                        [](const std::vector<std::string>& list) { return GoText(Json(list)); },
                    },
                    value);
}

Json BlobToJson(const OllamaBlob& blob) {
  return {{"mediaType", blob.media_type}, {"digest", blob.digest.text()}, {"size", blob.size}};
}

std::string FromLines(const char* instruction, const std::vector<std::string>& names) {
  std::string lines;
  for (const std::string& name : names)
    lines += fmt::format("{}{} {}", lines.empty() ? "" : "\n", instruction, name);
  return lines;
}

}  // namespace

ModelFacts FactsOf(const std::string& name, const Inputs& inputs) {
  ModelFacts facts;
  facts.name = name;
  bool first = true;
  for (const WeightFile& weight : inputs.weights) {
    if (weight.role != Role::kModel) continue;
    facts.parameters += weight.gguf ? weight.gguf->parameters : weight.safetensors->parameters;
    if (!std::exchange(first, false)) continue;
    facts.format = weight.gguf ? "gguf" : "safetensors";
    if (weight.gguf) {
      facts.architecture = weight.gguf->architecture;
      facts.context_length = weight.gguf->context_length;
    }
    facts.quantization = weight.gguf ? weight.gguf->file_type : weight.safetensors->dtype;
  }
  if (facts.format != "safetensors") return facts;
  for (const SmallInput& small : inputs.small) {
    if (small.role != Role::kModel || small.name != "config.json") continue;
    const absl::StatusOr<Json> config = ParseJson(small.content, kMaxConfigBytes);
    if (config.ok()) AddConfigFacts(*config, facts);
  }
  return facts;
}

std::string FactsJson(const ModelFacts& facts) {
  Json json = {{"schemaVersion", 1}, {"name", facts.name}, {"format", facts.format}};
  if (!facts.architecture.empty()) json["architecture"] = facts.architecture;
  json["parameters"] = facts.parameters;
  if (!facts.quantization.empty()) json["quantization"] = facts.quantization;
  if (facts.context_length > 0) json["contextLength"] = facts.context_length;
  return DumpJson(json) + "\n";
}

std::string ParamsJson(const std::map<std::string, ParameterValue>& parameters) {
  std::string json;
  for (const auto& [name, value] : parameters)
    json += fmt::format("{}{}:{}", json.empty() ? "" : ",", GoText(Json(name)), GoValue(value));
  return "{" + json + "}\n";
}

std::string MessagesJson(const std::vector<ChatMessage>& messages) {
  Json json = Json::array();
  for (const ChatMessage& message : messages)
    json.push_back(Json{{"role", message.role}, {"content", message.content}});
  return GoText(json) + "\n";
}

std::string HumanNumber(uint64_t number) {
  const auto scaled = [number](double unit, int digits, const char* name) {
    const double value = static_cast<double>(number) / unit;
    return fmt::format("{:.{}f}{}", value, value == std::floor(value) ? 0 : digits, name);
  };
  if (number >= 1'000'000'000) return scaled(1e9, 1, "B");
  if (number >= 1'000'000) return scaled(1e6, 2, "M");
  if (number >= 1'000) return scaled(1e3, 0, "K");
  return std::to_string(number);
}

std::string OllamaConfigJson(const std::vector<WeightFile>& weights,
                             const std::vector<OllamaBlob>& layers) {
  Json families = Json::array(), diff_ids = Json::array();
  Json config = {{"model_format", "gguf"}};
  for (const WeightFile& weight : weights) {
    if (!weight.gguf.has_value() || weight.role == Role::kAdapter) continue;
    const GgufInfo& gguf = *weight.gguf;
    if (weight.role == Role::kModel) {
      config["model_family"] = gguf.architecture;
      config["model_families"] = nullptr;  // its place
      config["model_type"] = HumanNumber(gguf.parameters);
      // Ollama reads the number 0 as "not said".
      config["file_type"] = gguf.file_type == "F32" ? "unknown" : gguf.file_type;
    }
    if (std::find(families.begin(), families.end(), gguf.architecture) == families.end())
      families.push_back(gguf.architecture);
  }
  config["model_families"] = std::move(families);
  config["architecture"] = "amd64";
  config["os"] = "linux";
  for (const OllamaBlob& layer : layers) diff_ids.push_back(layer.digest.text());
  config["rootfs"] = {{"type", "layers"}, {"diff_ids", std::move(diff_ids)}};
  return GoText(config) + "\n";
}

std::string OllamaManifestJson(const OllamaBlob& config, const std::vector<OllamaBlob>& layers) {
  Json list = Json::array();
  for (const OllamaBlob& layer : layers) list.push_back(BlobToJson(layer));
  return GoText({{"schemaVersion", 2},
                 {"mediaType", oci::kDockerManifestType},
                 {"config", BlobToJson(config)},
                 {"layers", std::move(list)}}) +
         "\n";
}

std::string PackedModelfile(const Modelfile& modelfile, const std::vector<std::string>& from,
                            const std::vector<std::string>& adapters) {
  // Ranges in the order of the text, with what replaces them: the first FROM
  // becomes all of them.
  std::vector<std::pair<Modelfile::Range, std::string>> changes;
  for (const Modelfile::Range& range : modelfile.from_ranges)
    changes.emplace_back(range, changes.empty() ? FromLines("FROM", from) : "");
  for (const Modelfile::Range& range : modelfile.adapter_ranges) {
    const bool first = range.begin == modelfile.adapter_ranges.front().begin;
    changes.emplace_back(range, first ? FromLines("ADAPTER", adapters) : "");
  }
  std::sort(changes.begin(), changes.end(),
            [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
  std::string text;
  size_t at = 0;
  for (const auto& [range, replacement] : changes) {
    text += modelfile.text.substr(at, range.begin - at) + replacement;
    at = range.end;
  }
  return text + modelfile.text.substr(at);
}

}  // namespace kapsule::model
