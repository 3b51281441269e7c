// The small documents that Kapsule writes: byte for byte what Ollama itself
// writes where it has them, so that digests agree.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/json.h"
#include "core/model/inputs.h"
#include "core/oci/digest.h"
#include "core/oci/manifest.h"

namespace kapsule::model {

// What may be said in public about a model: neither file names nor digests.
struct ModelFacts {
  std::string name;          // "tiny"
  std::string format;        // "gguf", "safetensors"
  std::string architecture;  // "llama"; empty where unknown
  uint64_t parameters = 0;
  std::string quantization;     // "Q4_K_M", "BF16"
  uint64_t context_length = 0;  // 0: unknown
};
// Facts of all weights with the role kModel (and a config.json among `small`).
ModelFacts FactsOf(const std::string& name, const Inputs& inputs);
// /kapsule/model.json: {"schemaVersion":1,"name":…}; members that are unknown are left out.
std::string FactsJson(const ModelFacts& facts);

// Ollama's params blob: sorted keys.
std::string ParamsJson(const std::map<std::string, ParameterValue>& parameters);
// Ollama's messages blob.
std::string MessagesJson(const std::vector<ChatMessage>& messages);
// Ollama's "134.52M".
std::string HumanNumber(uint64_t number);

// One layer of Ollama's manifest, or its config.
struct OllamaBlob {
  std::string media_type;
  oci::Digest digest;
  uint64_t size = 0;
};
inline constexpr char kOllamaConfigType[] = "application/vnd.docker.container.image.v1+json";
inline constexpr char kOllamaTypePrefix[] = "application/vnd.ollama.image.";

// Ollama's config of a GGUF model; `weights` in the order of `layers`.
std::string OllamaConfigJson(const std::vector<WeightFile>& weights,
                             const std::vector<OllamaBlob>& layers);
std::string OllamaManifestJson(const OllamaBlob& config, const std::vector<OllamaBlob>& layers);

// The Modelfile as it stands in the image: FROM and ADAPTER name the files
// beside it, everything else keeps its text.
std::string PackedModelfile(const Modelfile& modelfile, const std::vector<std::string>& from,
                            const std::vector<std::string>& adapters);

}  // namespace kapsule::model
